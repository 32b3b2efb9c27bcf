"""A job: tasks on their way, its state, progress and end."""

import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count

import anyio

from layerdiffuse_mcp.api.outcome import ImageResult, Outcome, Progress
from layerdiffuse_mcp.api.plan import Planned, Task
from layerdiffuse_mcp.errors import LayerDiffuseError


class State(StrEnum):
    """The life of a job, in order; the last four are final. Only what is not on this machine is downloaded first.

    INTERRUPTED are those whose server ended before them.
    CANCELLING is what `Job.status` says of one that was cancelled while its worker has not stopped yet: for whoever
    waits for it, it has ended.
    """

    DOWNLOADING = "downloading"
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


BEGUN = 0.1
"""Share of a job from which on its own progress tells more than other jobs do."""
FINAL = frozenset({State.DONE, State.FAILED, State.CANCELLED, State.INTERRUPTED})
DRAWN = 0.95
"""Share of its tasks, where its pictures are finished after them."""
LEFT = re.compile(r", about [0-9]+ s left$")


@dataclass(frozen=True, eq=False)
class Part:
    """A task of a job, and its number among all, in the order of their arrival."""

    job: "Job"
    index: int
    number: int

    @property
    def task(self) -> Task:
        """What is to be done."""
        return self.job.tasks[self.index]


@dataclass(frozen=True, eq=False)
class Batch:
    """What a worker does at once: a task, or several that are alike, of one job or of several."""

    worker: int
    parts: tuple[Part, ...]
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    @property
    def jobs(self) -> dict["Job", list[int]]:
        """The jobs whose tasks it holds, with the indices of these."""
        found: dict[Job, list[int]] = {}
        for part in self.parts:
            found.setdefault(part.job, []).append(part.index)
        return found


class Job:
    """One or more tasks on their way; it ends with its last. Read it freely; only `Jobs` changes it.

    `client`: whose it is, and with whose jobs it takes turns. `key`: by which its caller asks for it again; `asked`: a
    digest of what it asked for. `number`, and those of its `parts`: of their arrival, from `numbers`. `batches`: what
    workers do for it now. `outcomes`: of its tasks, by index; `lost`: indices of those whose worker vanished, which are
    run again. `scope`: what it does beside workers, that is downloading, finishing its pictures and writing files.
    `expected`: seconds that its drawing takes as others did here (`pace.py`). `at_drawn`: what is called once all its
    tasks have an outcome; `at_end`: when it ends. `moved`: what is called with it and its last state when that changes.
    `created`, `started` and `ended` are seconds of the monotonic clock, of use for spans alone.
    """

    def __init__(
        self,
        what: str,
        planned: Planned,
        client: str = "",
        numbers: Iterator[int] | None = None,
        key: str | None = None,
        asked: str | None = None,
    ) -> None:
        self.id = f"job-{secrets.token_hex(4)}"
        self.what, self.client, self.key, self.asked = what, client, key, asked
        self.starts_from_pictures = bool(planned.inputs)
        self.tasks, self.inputs, self.downloads = planned.tasks, planned.inputs, planned.downloads
        self.finish = planned.finish
        counted = count() if numbers is None else numbers
        self.number = next(counted)
        self.parts = tuple(Part(self, index, next(counted)) for index in range(len(self.tasks)))
        self.moved: Callable[[Job, State], object] | None = None
        self.at_drawn: Callable[[], object] = lambda: None
        self._state = State.QUEUED
        self.progress = Progress(fraction=0.0, message="waiting")
        self.outcomes: dict[int, Outcome] = {}
        self.lost: set[int] = set()
        self.batches: list[Batch] = []
        self.outcome: Outcome | None = None
        self.error: LayerDiffuseError | None = None
        self.expected: float | None = None
        self.created = time.monotonic()
        self.started: float | None = None
        self.ended: float | None = None
        self.scope = anyio.CancelScope()
        self.changed = anyio.Event()
        self.at_end: list[Callable[[], object]] = []
        self._before = 0.0
        self._fractions = [0.0] * len(self.tasks)

    @property
    def state(self) -> State:
        """Where in its life it is."""
        return self._state

    def _move(self, state: State) -> None:
        before, self._state = self._state, state
        if self.moved is not None and before is not state:
            self.moved(self, before)

    @property
    def finished(self) -> bool:
        """Whether the state is final."""
        return self.state in FINAL

    @property
    def status(self) -> State:
        """The state as it is told: one that is cancelled and still occupies a worker is `CANCELLING`."""
        stopping = any(batch.scope.cancel_called for batch in self.batches)
        return State.CANCELLING if stopping and self.state is State.CANCELLED else self.state

    @property
    def seconds(self) -> float:
        """How long it has run, or ran."""
        return 0.0 if self.started is None else (self.ended or time.monotonic()) - self.started

    @property
    def seconds_left(self) -> float | None:
        """A guess: at first by what is expected, then by the progress made; None while there is nothing to go by."""
        fraction = self.progress.fraction
        if self.state is State.RUNNING and fraction < BEGUN and self.expected is not None:
            return self.expected * (1 - fraction)
        if self.state not in (State.DOWNLOADING, State.RUNNING) or fraction < 0.05:
            return None
        return self.seconds * (1 - fraction) / fraction

    def image(self, number: int) -> ImageResult | None:
        """The picture of that number, from 1."""
        images = self.outcome.images if self.outcome else ()
        return images[number - 1] if 1 <= number <= len(images) else None

    def announce(self) -> None:
        """Wake whoever waits for a change."""
        self.changed.set()
        self.changed = anyio.Event()

    def report(self, progress: Progress) -> None:
        """Take note of progress, which ends with the job; the fraction never falls."""
        if self.finished:
            return
        if progress.fraction < self.progress.fraction:
            progress = progress.model_copy(update={"fraction": self.progress.fraction})
        self.progress = progress
        self.announce()

    def report_on(self, indices: Sequence[int], progress: Progress) -> None:
        """Take note of how far those of its tasks are that a worker is at."""
        for index in indices:
            self._fractions[index] = max(self._fractions[index], min(1.0, progress.fraction))
        message = progress.message
        if len(self.tasks) > 1:  # the time that is left of one task would mislead: that of the job is its own to tell
            first, last = min(indices) + 1, max(indices) + 1
            which = f"{first}" if first == last else f"{first}-{last}"
            message = f"{which} of {len(self.tasks)}: {LEFT.sub('', message)}"
        self.report(Progress(fraction=self._fraction(), message=message))

    def drawn(self, index: int, outcome: Outcome) -> None:
        """One of its tasks is done; the next report tells."""
        self.outcomes[index], self._fractions[index] = outcome, 1.0

    def _fraction(self) -> float:
        share = (1 - self._before) * (DRAWN if self.finish else 1.0)
        return min(1.0, self._before + share * sum(self._fractions) / len(self.tasks))

    def download(self) -> None:
        """What it lacks is being fetched from now on."""
        self.started = time.monotonic()
        self._move(State.DOWNLOADING)
        self.report(Progress(fraction=0.0, message="waiting for other downloads"))

    def wait(self) -> None:
        """It waits for a worker."""
        self._move(State.QUEUED)
        self.announce()

    def begin(self, batch: Batch) -> None:
        """A worker is free for some of its tasks, alone or with those of other jobs."""
        self.batches.append(batch)
        if self.state is not State.RUNNING:
            self.started = self.started or time.monotonic()
            self._before = self.progress.fraction
            self._move(State.RUNNING)
            self.report(Progress(fraction=0.0, message="starting"))

    def end(self, state: State, outcome: Outcome | None = None, error: LayerDiffuseError | None = None) -> None:
        """It has ended in a final state; the first end is the one that counts."""
        if self.finished:
            return
        self.outcome, self.error, self.ended = outcome, error, time.monotonic()
        self.outcomes = {}
        fraction = 1.0 if state is State.DONE else self.progress.fraction
        self.progress = Progress(fraction=fraction, message=state.value)
        self._move(state)
        while self.at_end:
            self.at_end.pop()()
        self.announce()
