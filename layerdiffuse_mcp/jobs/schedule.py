"""Which waiting task goes to which idle worker: the one rule, for the workers of this machine and any others.

    schedule = Schedule()
    schedule.add(Waiting(1, job=1, client="a", model="pocket"))
    schedule.next([Idle(0, {"pocket": frozenset()})], now=0.0)     # Given(worker=0, tasks=(Waiting(1, ...),))

Clients take turns, each with the tasks that it asked for first. A worker that holds a task's model comes before one
that would have to load it: a job that no idle worker holds the model of lets others pass, but no more than `PASSES`
times or `SECONDS` long. It is passed over when a later job of its client goes first, and when it is next of its client
and another's goes although it is not that one's turn. Tasks that are drawn as one batch count as one.

Plain values alone: this module knows no process and no clock, so that `benchmarks/simulate.py` runs it on a thousand
workers that do not exist.
"""

import math
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

PASSES = 8
"""How often others may go before a job whose turn it is, because a worker holds their model."""
SECONDS = 60.0
"""For how long, from the first of them on."""


@dataclass(frozen=True)
class Waiting:
    """A task that waits.

    number: what it is known by, in the order of arrival. job: the number of its job, likewise. layers: the layer files
    that it needs beside its model. batch_key: equal for tasks that are to be drawn as one batch, of at most `together`
    results; it makes `results` of them.
    """

    number: int
    job: int
    client: str
    model: str
    layers: frozenset[str] = frozenset()
    batch_key: str | None = None
    results: int = 1
    together: int = 1


@dataclass(frozen=True)
class Idle:
    """A worker that takes a task now: the models that it holds, each with its layer files; whether it has started."""

    worker: int
    models: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    started: bool = True


@dataclass(frozen=True)
class Given:
    """What a worker is to do: one task, or several as one batch."""

    worker: int
    tasks: tuple[Waiting, ...]


@dataclass
class _Client:
    """What one client waits for: numbers of tasks, in order, in all and by model; numbers of jobs.

    passes: of others that went before tasks of these numbers and less: (number, when).
    """

    numbers: list[int] = field(default_factory=list[int])
    by_model: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    jobs: list[int] = field(default_factory=list[int])
    passes: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])

    @property
    def head(self) -> int:
        """The task that is next."""
        return self.numbers[0]

    def overdue(self, now: float, passes: int, seconds: float) -> bool:
        """Whether others went before its head as often or as long as they may."""
        if not self.passes:
            return False
        if self.passes[0][0] < self.head:
            self.passes = [known for known in self.passes if known[0] >= self.head]
        return len(self.passes) >= passes or any(now - when >= seconds for _, when in self.passes[:1])

    def first_of(self, models: Collection[str]) -> int | None:
        """Its first task with one of these models."""
        return min((self.by_model[model][0] for model in models if model in self.by_model), default=None)


class Schedule:
    """What waits, and what comes next.

    Args:
        passes: how often a job may be passed over. A thousand workers do that within a second: where they are many,
            `PASSES` for each of them keeps models where they are, and `seconds` is the bound.
        seconds: for how long.
    """

    def __init__(self, passes: int = PASSES, seconds: float = SECONDS) -> None:
        self._passes, self._seconds = passes, seconds
        self._tasks: dict[int, Waiting] = {}
        self._clients: dict[str, _Client] = {}
        """In the order of their turns."""
        self._alike: dict[str, list[int]] = {}
        self._of_job: Counter[int] = Counter()
        self._last_of_job: dict[int, int] = {}
        self._wanted: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._tasks)

    def __contains__(self, number: object) -> bool:
        return number in self._tasks

    @property
    def jobs(self) -> int:
        """How many jobs have tasks that wait."""
        return len(self._of_job)

    def add(self, task: Waiting) -> None:
        """Take in a task; one that was given out before and comes back has the place that it had."""
        self._tasks[task.number] = task
        self._last_of_job[task.job] = max(task.number, self._last_of_job.get(task.job, task.number))
        client = self._clients.setdefault(task.client, _Client())
        insort(client.numbers, task.number)
        insort(client.by_model.setdefault(task.model, []), task.number)
        if not self._of_job[task.job]:
            insort(client.jobs, task.job)
        self._of_job[task.job] += 1
        self._wanted[task.model] += 1
        if task.batch_key is not None:
            insort(self._alike.setdefault(task.batch_key, []), task.number)

    def remove(self, number: int) -> Waiting:
        """Forget a task, which nobody wants any more or a worker has."""
        task = self._tasks.pop(number)
        client = self._clients[task.client]
        _without(client.numbers, number)
        _drop(client.by_model, task.model, number)
        self._of_job[task.job] -= 1
        if not self._of_job[task.job]:
            del self._of_job[task.job], self._last_of_job[task.job]
            _without(client.jobs, task.job)
        self._wanted[task.model] -= 1
        if task.batch_key is not None:
            _drop(self._alike, task.batch_key, number)
        if not client.numbers:
            del self._clients[task.client]
        return task

    def ahead(self, job: int, client: str) -> int:
        """How many jobs have their turn before a waiting one, if no worker's model makes a difference."""
        own = bisect_left(self._clients[client].jobs, job)
        ahead, before = own, True
        for name, other in self._clients.items():
            if name == client:
                before = False
            else:
                ahead += min(len(other.jobs), own + before)
        return ahead

    def next(self, idle: Sequence[Idle], now: float) -> Given | None:
        """Give out what is next, to the worker that suits it best; None if nothing waits or nobody is idle.

        Args:
            now: in seconds, of any clock that never goes back.
        """
        if not idle or not self._tasks:
            return None
        held = {model for worker in idle for model in worker.models if self._wanted[model]}
        chosen = self._chosen(held, now)
        first = self._tasks[chosen]
        tasks = [self._tasks[number] for number in self._batch(first, len(idle))]
        self._note_passed(first, now)
        for task in tasks:
            self.remove(task.number)
            if task.client in self._clients:  # its next turn comes after everybody else's
                self._clients[task.client] = self._clients.pop(task.client)
        return Given(self._suited(first, idle), tuple(tasks))

    def _chosen(self, held: Collection[str], now: float) -> int:
        for client in self._clients.values():
            if client.overdue(now, self._passes, self._seconds):
                return client.head
        for client in self._clients.values() if held else ():
            if (number := client.first_of(held)) is not None:
                return number
        return next(iter(self._clients.values())).head

    def _batch(self, first: Waiting, idle: int) -> list[int]:
        """The task and others that are drawn with it; those that are alike are shared out among idle workers."""
        batch = [first.number]
        if first.batch_key is None:
            return batch
        alike = self._alike[first.batch_key]
        share = math.ceil(sum(self._tasks[number].results for number in alike[: first.together * idle]) / idle)
        room = min(first.together, share) - first.results
        for number in alike:
            results = self._tasks[number].results
            if room <= 0:
                break
            if number != first.number and results <= room:
                batch.append(number)
                room -= results
        return batch

    def _note_passed(self, chosen: Waiting, now: float) -> None:
        """Note whom the chosen one passed over."""
        for name, client in self._clients.items():
            if name == chosen.client:
                if client.head != chosen.number:
                    client.passes.append((chosen.number - 1, now))
                return
            client.passes.append((self._last_of_job[self._tasks[client.head].job], now))

    def _suited(self, task: Waiting, idle: Sequence[Idle]) -> int:
        """A worker that holds the model and most of its layers, else one that gives up least for it."""
        holding = [worker for worker in idle if task.model in worker.models]
        if holding:
            return min(holding, key=lambda one: (-len(task.layers & one.models[task.model]), one.worker)).worker

        def given_up(one: Idle) -> tuple[bool, bool, int, int]:
            wanted = any(self._wanted[model] > 0 for model in one.models)
            return wanted, not one.started, len(one.models), one.worker

        return min(idle, key=given_up).worker


def _without(numbers: list[int], number: int) -> None:
    del numbers[bisect_right(numbers, number) - 1]


def _drop(lists: dict[str, list[int]], key: str, number: int) -> None:
    _without(lists[key], number)
    if not lists[key]:
        del lists[key]
