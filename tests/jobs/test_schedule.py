"""The choice of the next task: in turn, to a worker that holds its model, and nobody waits for ever."""

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from layerdiffuse_mcp.jobs.schedule import PASSES, SECONDS, Given, Idle, Schedule, Waiting
from tests.fuzz.examples import examples

NOTHING: frozenset[str] = frozenset()


def task(number: int, model: str = "a", client: str = "", **more: object) -> Waiting:
    return replace(Waiting(number, number, client, model), **more)


def filled(*tasks: Waiting) -> Schedule:
    schedule = Schedule()
    for one in tasks:
        schedule.add(one)
    return schedule


def holding(worker: int, *models: str) -> Idle:
    return Idle(worker, {model: NOTHING for model in models})


def order(schedule: Schedule, worker: Idle, now: float = 0.0) -> list[int]:
    """The numbers of all that waits, as one worker gets them; it holds what it last drew with, and nothing else."""
    numbers: list[int] = []
    while given := schedule.next([worker], now):
        numbers += [one.number for one in given.tasks]
        worker = holding(worker.worker, given.tasks[0].model)
    return numbers


def test_tasks_of_one_model_keep_their_order():
    assert order(filled(*map(task, (1, 2, 3))), Idle(0)) == [1, 2, 3]


def test_clients_take_turns_however_much_each_asked_for():
    many = [task(number, client="many") for number in range(1, 7)]
    few = [task(7, client="few"), task(8, client="few"), task(9, client="one")]
    assert order(filled(*many, *few), holding(0, "a")) == [1, 7, 9, 2, 8, 3, 4, 5, 6]


def test_a_task_goes_to_the_idle_worker_that_holds_its_model_and_its_layers():
    workers = [Idle(0), holding(1, "a"), Idle(2, {"a": frozenset({"layer"})}), holding(3, "b")]
    given = filled(task(1, layers=frozenset({"layer"}))).next(workers, 0.0)
    assert given is not None
    assert given.worker == 2


def test_what_nobody_holds_goes_to_the_worker_that_gives_up_least():
    def chosen(*idle: Idle) -> int:
        schedule = filled(task(1, "new"), task(2, "wanted"))
        schedule.add(task(0, "old"))
        schedule.remove(0)
        first = schedule.next([one for one in idle if "wanted" not in one.models], 0.0)
        assert first is not None
        return first.worker

    assert chosen(holding(0, "old"), Idle(1)) == 1
    assert chosen(Idle(0, started=False), Idle(1)) == 1
    assert chosen(Idle(0, started=False), holding(1, "old")) == 1


def test_a_model_that_is_held_comes_first_but_no_job_lets_more_than_so_many_pass():
    first, others = task(1, "b"), [task(number, "a") for number in range(2, 30)]
    numbers = order(filled(first, *others), holding(0, "a"))
    assert numbers.index(1) == PASSES


def test_no_job_lets_others_pass_for_longer_than_a_minute():
    schedule = filled(task(1, "b"), *(task(number, "a") for number in range(2, 30)))
    times = (0.0, SECONDS - 1, SECONDS)
    given = [schedule.next([holding(0, "a")], now) for now in times]
    assert [one.tasks[0].number for one in given if one] == [2, 3, 1]


def test_two_clients_with_a_model_each_share_one_worker_in_runs_and_not_in_loads():
    ours = [task(number, "a", "ours") for number in range(1, 41)]
    theirs = [task(number, "b", "theirs") for number in range(41, 81)]
    drawn = ["a" if number <= 40 else "b" for number in order(filled(*ours, *theirs), Idle(0))]
    loads = 1 + sum(one != other for one, other in pairwise(drawn))
    assert loads <= 2 + 80 // (PASSES + 1)
    assert drawn[:20].count("b") >= PASSES


def test_a_task_that_comes_back_has_its_place():
    schedule = filled(task(1), task(2), task(3))
    given = schedule.next([Idle(0)], 0.0)
    assert given is not None
    schedule.add(given.tasks[0])
    assert order(schedule, Idle(0)) == [1, 2, 3]


def test_tasks_that_are_alike_are_drawn_together_up_to_their_limit_and_shared_out_among_idle_workers():
    alike = [task(number, batch_key="k", together=4, client=f"c{number % 2}") for number in range(1, 7)]
    other = task(7, batch_key="other", together=4)
    schedule = filled(*alike, other)
    first = schedule.next([Idle(0)], 0.0)
    assert first == Given(0, tuple(alike[:4]))
    shared = filled(*alike)
    given = [shared.next(idle, 0.0) for idle in ([Idle(0), Idle(1)], [Idle(1)])]
    assert [len(one.tasks) for one in given if one] == [3, 3]


def test_a_batch_takes_no_more_results_than_fit_and_leaves_alone_what_shares_none():
    tasks = [
        task(1, batch_key="k", together=8, results=5),
        task(2, batch_key="k", together=8, results=4),
        task(3, batch_key="k", together=8, results=3),
        task(4),
    ]
    given = filled(*tasks).next([Idle(0)], 0.0)
    assert given is not None
    assert [one.number for one in given.tasks] == [1, 3]


def test_how_many_jobs_are_ahead_counts_the_turns_of_other_clients():
    schedule = filled(
        task(1, client="x"), task(2, client="x", job=1), task(3, client="x"), task(4, client="y"), task(5, client="z")
    )
    assert [schedule.ahead(job, client) for job, client in ((1, "x"), (4, "y"), (5, "z"), (3, "x"))] == [0, 1, 2, 3]
    assert schedule.jobs == 4


@dataclass
class Served:
    """What the test itself counts: how often a waiting job saw others go first."""

    waiting: dict[int, Waiting] = field(default_factory=dict[int, Waiting])
    passed: Counter[int] = field(default_factory=Counter[int])
    since: Counter[str] = field(default_factory=Counter[str])
    """Turns of others since a client that waits had one."""

    def check(self, given: Given, idle: list[Idle]) -> None:
        first = given.tasks[0]
        holders = {worker.worker for worker in idle if first.model in worker.models}
        assert given.worker in (holders or {worker.worker for worker in idle})
        for one in given.tasks:
            assert self.waiting.pop(one.number) == one
        own = {one.job for one in self.waiting.values() if one.client == first.client and one.number < first.number}
        self.passed.update(own - {first.job})
        clients = {one.client for one in self.waiting.values()}
        self.since.update(clients - {first.client})
        for client in {one.client for one in given.tasks} | (set(self.since) - clients):
            del self.since[client]
        assert all(self.passed[one.job] <= PASSES for one in self.waiting.values())


EVENTS = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 3), st.integers(0, 3), st.integers(1, 3)),
    st.tuples(st.just("draw"), st.integers(0, 2), st.just(0), st.just(0)),
    st.tuples(st.just("cancel"), st.integers(0, 50), st.just(0), st.just(0)),
)


@examples(150)
@given(events=st.lists(EVENTS, min_size=20, max_size=120), workers=st.integers(1, 3), batches=st.booleans())
def test_whatever_comes_nobody_starves_and_no_worker_is_idle_while_something_waits(
    events: list[tuple[str, int, int, int]], workers: int, batches: bool
):
    schedule, served, number = Schedule(), Served(), 0
    held: dict[int, set[str]] = {worker: set() for worker in range(workers)}
    for event, *args in [*events, *[("draw", 0, 0, 0)] * 400]:
        if event == "ask":
            client, model, tasks = args
            job = number + 1
            for _ in range(tasks):
                number += 1
                key = f"{model}" if batches else None
                one = Waiting(number, job, f"c{client}", f"m{model}", batch_key=key, together=4)
                schedule.add(one)
                served.waiting[number] = one
        elif event == "cancel" and served.waiting:
            gone = sorted(served.waiting)[args[0] % len(served.waiting)]
            schedule.remove(gone)
            client = served.waiting.pop(gone).client
            if client not in {one.client for one in served.waiting.values()}:
                del served.since[client]
        elif event == "draw":
            idle = [Idle(worker, {m: NOTHING for m in held[worker]}) for worker in range(args[0] % workers, workers)]
            given = schedule.next(idle, 0.0)
            assert (given is None) == (not served.waiting)
            if given:
                served.check(given, idle)
                held[given.worker] = {given.tasks[0].model}
                assert all(turns <= PASSES + 3 for turns in served.since.values()), served.since
    assert len(schedule) == 0
    assert not served.waiting
