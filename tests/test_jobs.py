"""The queue: jobs keep their order, can be waited for and cancelled, and always end."""

import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.errors import JobNotFound, OutOfMemory, QueueFull, WorkerDied
from layerdiffuse_mcp.jobs import Job, Jobs, State
from layerdiffuse_mcp.outcome import Progress
from layerdiffuse_mcp.requests import GenerateRequest
from layerdiffuse_mcp.settings import Settings

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def open_jobs(settings: Settings, engine: str, heartbeat: float = 3.0) -> AsyncIterator[Jobs]:
    async with Jobs(LocalBackend(settings, engine), settings, heartbeat) as jobs:
        yield jobs


def ask(jobs: Jobs, prompt: str) -> Job:
    return jobs.submit(GenerateRequest(prompt=prompt))


async def test_a_job_ends_with_its_outcome(settings: Settings, rehearsal: str):
    async with open_jobs(settings, rehearsal) as jobs:
        job = ask(jobs, "steps 2")
        await jobs.follow(job, 30)
        assert (job.state, job.progress.fraction) == (State.DONE, 1.0)
        assert job.outcome is not None
        assert job.outcome.model == "rehearsal"


async def test_jobs_run_one_at_a_time_in_the_order_they_came(settings: Settings, rehearsal: str):
    async with open_jobs(settings, rehearsal) as jobs:
        queued = [ask(jobs, "steps 2") for _ in range(3)]
        await anyio.sleep(0.01)
        assert [jobs.ahead_of(job) for job in queued] == [0, 1, 2]
        for job in queued:
            await jobs.follow(job, 30)
        starts, ends = [job.started for job in queued], [job.ended for job in queued]
        assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))


async def test_a_wait_ends_when_its_time_is_up_and_the_job_goes_on(settings: Settings, rehearsal: str):
    async with open_jobs(settings, rehearsal) as jobs:
        job = ask(jobs, "steps 60")
        began = time.monotonic()
        await jobs.follow(job, 0.2)
        assert time.monotonic() - began < 1
        assert job.state is State.RUNNING
        await jobs.follow(jobs.get(job.id), 30)
        assert job.state is State.DONE


async def test_whoever_follows_hears_something_within_a_heartbeat(settings: Settings, rehearsal: str):
    heard: list[tuple[float, Progress]] = []

    async def tell(progress: Progress) -> None:
        heard.append((time.monotonic(), progress))

    async with open_jobs(settings, rehearsal, heartbeat=0.1) as jobs:
        await jobs.follow(ask(jobs, "stuck 1"), 30, tell)
    times = [when for when, _ in heard]
    assert max(later - earlier for earlier, later in itertools.pairwise(times)) < 0.5
    assert all(progress.message for _, progress in heard)


async def test_a_waiting_job_says_how_many_are_ahead(settings: Settings, rehearsal: str):
    async with open_jobs(settings, rehearsal) as jobs:
        ask(jobs, "steps 50")
        second = ask(jobs, "steps 1")
        await anyio.sleep(0.01)
        assert jobs.progress(second).message.startswith("waiting: 1 job ahead")


async def test_a_waiting_job_is_cancelled_at_once(settings: Settings, rehearsal: str):
    async with open_jobs(settings, rehearsal) as jobs:
        first, second = ask(jobs, "steps 10"), ask(jobs, "steps 10")
        await anyio.sleep(0.01)
        jobs.cancel(second)
        assert second.state is State.CANCELLED
        await jobs.follow(first, 30)
        assert (first.state, second.started) == (State.DONE, None)


async def test_a_running_job_is_cancelled_at_its_next_step_and_the_next_one_runs(settings: Settings, rehearsal: str):
    async with open_jobs(settings, rehearsal) as jobs:
        warm, job, after = ask(jobs, "steps 1"), ask(jobs, "steps 1000"), ask(jobs, "steps 1")
        await jobs.follow(warm, 30)
        await jobs.follow(job, 0.3)
        jobs.cancel(job)
        began = time.monotonic()
        await jobs.follow(job, 10)
        assert (job.state, time.monotonic() - began < 1) == (State.CANCELLED, True)
        await jobs.follow(after, 10)
        assert after.state is State.DONE


async def test_cancelling_an_ended_job_changes_nothing(settings: Settings, rehearsal: str):
    async with open_jobs(settings, rehearsal) as jobs:
        job = ask(jobs, "steps 1")
        await jobs.follow(job, 30)
        jobs.cancel(job)
        assert job.state is State.DONE


async def test_errors_end_the_job_that_met_them_and_no_other(settings: Settings, rehearsal: str):
    async with open_jobs(settings, rehearsal) as jobs:
        refused, killed, fine = ask(jobs, "refused"), ask(jobs, "killed"), ask(jobs, "steps 1")
        await jobs.follow(fine, 30)
        assert [type(job.error) for job in (refused, killed, fine)] == [OutOfMemory, WorkerDied, type(None)]
        assert [job.state for job in (refused, killed, fine)] == [State.FAILED, State.FAILED, State.DONE]


async def test_a_full_queue_refuses_and_says_what_to_do(settings: Settings, rehearsal: str):
    async with open_jobs(settings.model_copy(update={"queue_size": 2}), rehearsal) as jobs:
        ask(jobs, "steps 100")
        await anyio.sleep(0.01)
        ask(jobs, "steps 1"), ask(jobs, "steps 1")
        with pytest.raises(QueueFull, match=r"2 jobs wait already.*cancel_job"):
            ask(jobs, "steps 1")


async def test_an_unknown_job_is_named_with_those_that_exist(settings: Settings, rehearsal: str):
    async with open_jobs(settings, rehearsal) as jobs:
        with pytest.raises(JobNotFound, match="no job yet"):
            jobs.get("job-0")
        job = ask(jobs, "steps 1")
        with pytest.raises(JobNotFound, match=job.id):
            jobs.get("job-0")


async def test_what_is_left_is_guessed_from_the_progress(settings: Settings, rehearsal: str):
    async with open_jobs(settings, rehearsal) as jobs:
        job = ask(jobs, "steps 100")
        assert job.seconds_left is None
        with anyio.fail_after(30):
            while job.progress.fraction < 0.2:
                await anyio.sleep(0.01)
        assert job.seconds_left is not None
        assert 0.5 < job.seconds_left < 60


async def test_closing_the_queue_ends_its_jobs(settings: Settings, rehearsal: str):
    async with open_jobs(settings, rehearsal) as jobs:
        running, waiting = ask(jobs, "steps 1000"), ask(jobs, "steps 1")
        await jobs.follow(running, 1)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert running.finished
    assert waiting.state is State.CANCELLED
