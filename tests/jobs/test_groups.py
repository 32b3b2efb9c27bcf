"""Jobs that are alike are drawn together: each keeps its own end."""

import threading

import anyio
import anyio.to_thread
import pytest

from layerdiffuse_mcp.api.plan import Planned, PreparePlan
from layerdiffuse_mcp.errors import OutOfMemory
from layerdiffuse_mcp.jobs.job import State
from layerdiffuse_mcp.jobs.queue import Jobs
from layerdiffuse_mcp.settings import Settings
from tests.jobs.opened import ask, ask_all, open_jobs, reach
from tests.programs.rehearsal import TOOK
from tests.results import files_below
from tests.tasks import drawing, planned

pytestmark = pytest.mark.anyio


async def test_a_job_has_ended_when_cancel_returns_wherever_it_was(grouping: Settings, rehearsal: str):
    async with open_jobs(grouping, rehearsal) as jobs:
        running, waiting = ask(jobs, "steps 100"), jobs.submit(Planned((PreparePlan(model="pocket"),)))
        grouped = ask_all(jobs, "steps 100", "refused", "steps 101", steps=9)  # fails as a group: each runs alone
        with anyio.fail_after(30):
            while running.progress.fraction == 0:
                await anyio.sleep(0.01)
        for job in (waiting, running):
            jobs.cancel(job)
            assert job.finished
        with anyio.fail_after(30):
            while grouped[0].progress.fraction == 0:
                await anyio.sleep(0.01)
        for job in (grouped[2], grouped[0]):
            jobs.cancel(job)
            assert job.finished
        after = ask(jobs, "steps 1")
        await jobs.follow(after, 30)
        assert after.state is State.DONE
        assert grouped[1].state is State.FAILED


async def done_by(jobs: Jobs) -> list[str]:
    await anyio.sleep(0.1)
    return jobs.backend.state()[0].engine["done"]


async def test_waiting_jobs_that_are_alike_are_drawn_together_if_that_is_set(settings: Settings, rehearsal: str):
    for grouping, done in ((False, ["steps 1", "steps 2", "steps 3"]), (True, ["steps 1 and steps 2 and steps 3"])):
        async with open_jobs(settings.model_copy(update={"group_jobs": grouping}), rehearsal) as jobs:
            queued = ask_all(jobs, "steps 1", "steps 2", "steps 3")
            for job in queued:
                await jobs.follow(job, 30)
            assert {job.state for job in queued} == {State.DONE}
            assert await done_by(jobs) == done
            if grouping:
                outcomes = [job.outcome for job in queued if job.outcome]
                assert [outcome.images[0].seed for outcome in outcomes] == [0, 1, 2]


@pytest.fixture
def grouping(settings: Settings) -> Settings:
    return settings.model_copy(update={"group_jobs": True})


async def test_a_batch_counts_once_in_the_time_that_each_of_its_jobs_took(grouping: Settings, rehearsal: str):
    async with open_jobs(grouping, rehearsal) as jobs:
        first, *queued = ask_all(jobs, "steps 20", "steps 1")
        several = jobs.submit(Planned((drawing("draw", seed=1), drawing("draw", seed=2), drawing("draw", seed=3))))
        for job in (first, *queued, several):
            await jobs.follow(job, 30)
            assert job.outcome
        done = [job.outcome.timings.total for job in (*queued, several) if job.outcome]
        assert set(done) == {TOOK}, done


async def test_what_is_not_alike_keeps_its_turn(grouping: Settings, rehearsal: str):
    async with open_jobs(grouping, rehearsal) as jobs:
        queued = [
            *ask_all(jobs, "steps 1"),
            jobs.submit(Planned((PreparePlan(model="pocket"),))),
            *ask_all(jobs, "steps 2", steps=9),
            *ask_all(jobs, "steps 3"),
            *ask_all(jobs, "steps 4", "steps 5 <lora:a:1>", count=8),
        ]
        for job in queued:
            await jobs.follow(job, 30)
        assert (await done_by(jobs))[0] == "steps 1 and steps 3"
        assert jobs.backend.state()[0].engine["done"][1:3] == ["steps 2", "steps 4"]


async def test_one_of_a_group_is_cancelled_and_the_others_go_on(grouping: Settings, rehearsal: str):
    async with open_jobs(grouping, rehearsal) as jobs:
        first, second, third = ask_all(jobs, "steps 100", "steps 1", "steps 1")
        with anyio.fail_after(30):
            while second.progress.fraction == 0:
                await anyio.sleep(0.01)
        jobs.cancel(second)
        assert (first.state, second.state) == (State.RUNNING, State.CANCELLED)
        await jobs.follow(first, 30)
        await jobs.follow(third, 30)
        assert (first.state, second.state, third.state) == (State.DONE, State.CANCELLED, State.DONE)
        assert sorted(path.name[7:] for path in files_below(grouping.output)) == ["0.png", "2.png"]


async def test_one_of_a_group_that_is_cancelled_while_its_files_are_written_leaves_none(
    grouping: Settings, rehearsal: str, held_writer: tuple[threading.Event, threading.Event]
):
    reached, go_on = held_writer
    async with open_jobs(grouping, rehearsal) as jobs:
        first, second, third = (
            jobs.submit(planned("draw", seed=seed, count=count)) for seed, count in ((0, 1), (10, 2), (20, 1))
        )
        await reach(reached)
        jobs.cancel(second)
        go_on.set()
        for job in (first, second, third):
            await jobs.follow(job, 30)
        assert [job.state for job in (first, second, third)] == [State.DONE, State.CANCELLED, State.DONE]
    # it is told at once, and its writer is waited for at the end
    assert sorted(path.name[7:] for path in files_below(grouping.output)) == ["0.png", "20.png"]


async def test_a_group_that_nobody_wants_any_more_stops(grouping: Settings, rehearsal: str):
    async with open_jobs(grouping, rehearsal) as jobs:
        queued = ask_all(jobs, "steps 1000", "steps 1")
        with anyio.fail_after(30):
            while queued[0].progress.fraction == 0:
                await anyio.sleep(0.01)
        for job in queued:
            jobs.cancel(job)
        [after] = ask_all(jobs, "steps 1")
        await jobs.follow(after, 10)
        assert [job.state for job in (*queued, after)] == [State.CANCELLED, State.CANCELLED, State.DONE]


async def test_an_error_of_one_of_a_group_is_no_others(grouping: Settings, rehearsal: str):
    async with open_jobs(grouping, rehearsal) as jobs:
        fine, refused, also_fine = ask_all(jobs, "steps 1", "refused", "steps 2")
        await jobs.follow(also_fine, 30)
        assert [job.state for job in (fine, refused, also_fine)] == [State.DONE, State.FAILED, State.DONE]
        assert isinstance(refused.error, OutOfMemory)
