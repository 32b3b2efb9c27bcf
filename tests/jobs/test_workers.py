"""Several workers: a job's tasks are done side by side, models stay where they are, and each dies alone."""

import os
import signal
from collections.abc import Callable

import anyio
import psutil
import pytest

from layerdiffuse_mcp.api.plan import Planned
from layerdiffuse_mcp.errors import OutOfMemory, WorkerDied
from layerdiffuse_mcp.jobs.job import Job, State
from layerdiffuse_mcp.jobs.queue import Jobs
from layerdiffuse_mcp.settings import Settings
from tests.jobs.opened import ask, open_jobs
from tests.tasks import drawing, planned

pytestmark = pytest.mark.anyio

FOREVER = "steps 1000000"


@pytest.fixture
def two(settings: Settings) -> Settings:
    return settings.model_copy(update={"workers": 2, "device": "cpu"})


@pytest.fixture
def four(settings: Settings) -> Settings:
    return settings.model_copy(update={"workers": 4, "device": "cpu"})


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not holds():
            await anyio.sleep(0.01)


async def all_done(jobs: Jobs, *asked: Job) -> None:
    for job in asked:
        await jobs.follow(job, 60)
    assert {job.state for job in asked} == {State.DONE}, [job.error for job in asked]


def pids(jobs: Jobs) -> set[int]:
    return {state.pid for state in jobs.backend.state() if state.pid}


async def test_a_job_of_several_tasks_is_done_by_as_many_workers(four: Settings, rehearsal: str):
    tasks = tuple(drawing("steps 2", seed=seed) for seed in range(8))
    async with open_jobs(four, rehearsal) as jobs:
        job = jobs.submit(Planned(tasks))
        await all_done(jobs, job)
        assert job.outcome is not None
        assert len(set(job.outcome.warnings)) == 4 == len(pids(jobs))


async def test_the_pictures_of_a_job_keep_their_order_whoever_is_done_first(two: Settings, rehearsal: str):
    prompts = ("square red 20", "square red", "square red 10", "square red")
    tasks = tuple(drawing(prompt, seed=seed, width=64, height=64) for seed, prompt in enumerate(prompts))
    async with open_jobs(two, rehearsal) as jobs:
        job = jobs.submit(Planned(tasks))
        heard: list[float] = []

        async def hear(progress: object) -> None:
            heard.append(job.progress.fraction)

        await jobs.follow(job, 60, hear)
    assert job.outcome is not None
    assert [image.seed for image in job.outcome.images] == [0, 1, 2, 3]
    assert heard == sorted(heard)


async def test_no_model_is_loaded_twice_while_an_idle_worker_has_it(two: Settings, rehearsal: str):
    async with open_jobs(two, rehearsal) as jobs:
        first = [ask(jobs, "steps 1", model=model) for model in ("a", "b")]
        await all_done(jobs, *first)
        for model in "babbaa":
            await all_done(jobs, ask(jobs, "steps 1", model=model))
        await until(lambda: all(state.phase == "ready" for state in jobs.backend.state()))
        assert sorted(load for state in jobs.backend.state() for load in state.engine["loads"]) == ["a", "b"]


async def test_clients_take_turns(two: Settings, rehearsal: str):
    one = two.model_copy(update={"workers": 1})
    async with open_jobs(one, rehearsal) as jobs:
        await all_done(jobs, ask(jobs, "steps 1"))
        running = ask(jobs, "steps 10")
        await until(lambda: running.progress.fraction > 0)
        many = [ask(jobs, f"many {number}", "many") for number in range(4)]
        few = [ask(jobs, f"few {number}", "few") for number in range(2)]
        assert [jobs.ahead_of(job) for job in (*many, *few)] == [1, 3, 5, 6, 2, 4]
        await all_done(jobs, *many, *few)
        done = jobs.backend.state()[0].engine["done"][2:]
    assert done == ["many 0", "few 0", "many 1", "few 1", "many 2", "many 3"]


async def test_a_worker_that_is_killed_fails_its_own_task_alone(two: Settings, rehearsal: str):
    async with open_jobs(two, rehearsal) as jobs:
        victim, other = ask(jobs, FOREVER), ask(jobs, "steps 100")
        await until(lambda: min(victim.progress.fraction, other.progress.fraction) > 0)
        [batch] = victim.batches
        pid = jobs.backend.state()[batch.worker].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await jobs.follow(victim, 60)
        assert isinstance(victim.error, WorkerDied)
        after = ask(jobs, "steps 1")
        await all_done(jobs, other, after)
        assert pid not in pids(jobs)


async def test_any_of_those_that_run_can_be_cancelled_and_the_next_takes_its_worker(four: Settings, rehearsal: str):
    async with open_jobs(four, rehearsal) as jobs:
        running = [ask(jobs, FOREVER) for _ in range(4)]
        waiting = ask(jobs, "steps 1")
        await until(lambda: all(job.progress.fraction > 0 for job in running))
        before = pids(jobs)
        jobs.cancel(running[2])
        await all_done(jobs, waiting)
        assert [job.state for job in running] == [State.RUNNING, State.RUNNING, State.CANCELLED, State.RUNNING]
        for job in running:
            jobs.cancel(job)
        await until(lambda: all(state.phase == "ready" for state in jobs.backend.state()))
        assert pids(jobs) == before


async def test_a_task_that_fails_ends_its_job_and_frees_the_workers_of_the_others(two: Settings, rehearsal: str):
    async with open_jobs(two, rehearsal) as jobs:
        await all_done(jobs, ask(jobs, "steps 1"), ask(jobs, "steps 1"))
        job = jobs.submit(Planned((drawing(FOREVER), drawing("refused"), drawing(FOREVER), drawing(FOREVER))))
        await jobs.follow(job, 60)
        assert isinstance(job.error, OutOfMemory)
        await all_done(jobs, ask(jobs, "steps 1"), ask(jobs, "steps 1"))
        assert jobs.waiting == 0


async def test_the_server_ends_with_all_workers_busy_and_leaves_none(four: Settings, rehearsal: str):
    async with open_jobs(four, rehearsal) as jobs:
        running = [ask(jobs, "stuck 60") for _ in range(4)]
        waiting = ask(jobs, "steps 1")
        await until(lambda: all(state.phase == "busy" for state in jobs.backend.state()))
        left = pids(jobs)
        assert len(left) == 4
    assert not [pid for pid in left if psutil.pid_exists(pid)]
    assert {job.state for job in (*running, waiting)} == {State.CANCELLED}


async def test_unloading_reaches_every_worker(two: Settings, rehearsal: str):
    async with open_jobs(two, rehearsal) as jobs:
        await all_done(jobs, ask(jobs, "steps 1", model="a"), ask(jobs, "steps 2", model="b"))
        assert sorted(await jobs.backend.unload()) == ["steps 1", "steps 2"]
        assert [dict(state.models) for state in jobs.backend.state()] == [{}, {}]


async def test_alike_tasks_are_shared_out_among_idle_workers_before_they_are_drawn_together(
    two: Settings, rehearsal: str
):
    grouping = two.model_copy(update={"group_jobs": True})
    async with open_jobs(grouping, rehearsal) as jobs:
        await all_done(jobs, *(ask(jobs, "steps 1", steps=steps) for steps in (3, 4)))
        job = jobs.submit(Planned(tuple(drawing("draw", seed=seed) for seed in range(8))))
        await all_done(jobs, job)
        done = [state.engine["done"][-1] for state in jobs.backend.state()]
    assert done == [" and ".join(["draw"] * 4)] * 2
    assert job.outcome is not None
    assert [image.seed for image in job.outcome.images] == list(range(8))


async def test_what_is_measured_to_gain_is_drawn_together_unless_the_settings_say_otherwise(
    settings: Settings, rehearsal: str
):
    for grouping, model, together in (("auto", "pocket", True), ("auto", "a-base", False), (False, "pocket", False)):
        changed = settings.model_copy(update={"group_jobs": grouping})
        async with open_jobs(changed, rehearsal) as jobs:
            asked = [jobs.submit(planned("draw", seed=seed, model=model)) for seed in range(3)]
            await all_done(jobs, *asked)
            assert (jobs.backend.state()[0].engine["done"] == ["draw and draw and draw"]) == together
