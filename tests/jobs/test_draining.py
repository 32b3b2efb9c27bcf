"""Before a server ends: what runs may end, what waits is left to the next server, and nobody waits in vain."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest

from layerdiffuse_mcp.api.plan import Planned
from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.errors import InvalidRequest, JobNotFound, QueueFull, ServerEnding
from layerdiffuse_mcp.jobs.dispatcher import Dispatcher
from layerdiffuse_mcp.jobs.job import Job, State
from layerdiffuse_mcp.jobs.queue import Jobs
from layerdiffuse_mcp.settings import Settings
from tests.jobs.opened import ask
from tests.tasks import drawing, planned

pytestmark = pytest.mark.anyio

Open = Callable[..., AsyncIterator[Jobs]]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's state folder, new for every test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def opened(settings: Settings, rehearsal: str) -> Open:
    @asynccontextmanager
    async def open_jobs(**changes: object) -> AsyncIterator[Jobs]:
        changed = settings.model_copy(update={"resume_jobs": True, **changes})
        async with Jobs(LocalBackend(changed, rehearsal), changed) as jobs:
            yield jobs

    return open_jobs


async def begun(job: Job) -> Job:
    with anyio.fail_after(60):
        while job.state is not State.RUNNING or job.progress.fraction == 0:
            await anyio.sleep(0.01)
    return job


async def test_what_runs_ends_and_what_waits_is_done_by_the_next_server(opened: Open):
    async with opened() as jobs:
        several = planned("steps 10").tasks * 2
        running = await begun(jobs.submit(Planned(several)))
        waiting = ask(jobs, "draw", seed=5)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(jobs.follow, waiting, 600)
            await anyio.sleep(0.01)
            await jobs.drain(60)
        assert (running.state, waiting.state) == (State.DONE, State.QUEUED)
        assert "the next one does this job" in jobs.progress(waiting).message
        with pytest.raises(ServerEnding, match="takes no new jobs"):
            ask(jobs, "steps 1")
    async with opened() as jobs:
        assert jobs.get(running.id).state is State.DONE
        again = jobs.get(waiting.id)
        await jobs.follow(again, 60)
        assert again.state is State.DONE


async def test_what_still_runs_at_the_end_of_its_time_is_interrupted(opened: Open):
    async with opened() as jobs:
        running = await begun(ask(jobs, "steps 1000000"))
        await jobs.drain(0.05)
        assert running.state is State.INTERRUPTED
        assert "while this job ran" in str(running.error)
    async with opened() as jobs:
        assert jobs.get(running.id).state is State.INTERRUPTED


async def test_a_caller_that_goes_during_the_end_takes_no_job_with_it(opened: Open):
    async with opened() as jobs:
        running, waiting = await begun(ask(jobs, "steps 1000000")), ask(jobs, "draw")
        await jobs.drain(0)
        for job in (running, waiting):
            jobs.cancel(job)
    async with opened() as jobs:
        assert jobs.get(running.id).state is State.INTERRUPTED
        assert jobs.get(waiting.id).state is not State.CANCELLED


async def test_a_download_that_ends_meanwhile_begins_no_drawing(opened: Open):
    async with opened() as jobs:
        await begun(ask(jobs, "steps 1000000"))
        fetching = ask(jobs, "draw")
        await jobs.drain(0)
        jobs.dispatcher.add(fetching.parts)
        await anyio.sleep(0.1)
        assert fetching.state is State.QUEUED


async def test_queues_that_share_workers_know_nothing_of_each_other(settings: Settings, rehearsal: str):
    async with AsyncExitStack() as stack:
        one = settings.model_copy(update={"group_jobs": False})
        dispatcher = await stack.enter_async_context(Dispatcher(LocalBackend(one, rehearsal), one))
        mine, yours = [
            await stack.enter_async_context(
                Jobs(dispatcher, one.model_copy(update={"output_dir": settings.output / name}))
            )
            for name in ("mine", "yours")
        ]
        running = await begun(ask(mine, "steps 1000000", "me"))
        drawn = yours.submit(planned("draw"), client="you", key="k")
        assert yours.ahead_of(drawn) == 1
        assert mine.by_key("k") is None
        with pytest.raises(JobNotFound, match=rf"Allowed: {drawn.id}\.$"):
            yours.get(running.id)
        assert (mine.newest_first(), yours.newest_first()) == ([running], [drawn])
        mine.cancel(running)
        await yours.follow(drawn, 60)
        assert drawn.outcome is not None
        assert drawn.outcome.images[0].path.is_relative_to(settings.output / "yours")
        assert (mine.index.find(drawn.id, 1), yours.index.find(drawn.id, 1) is None) == (None, False)


async def test_pixels_at_once_are_bounded(opened: Open):
    side = drawing("x").as_drawn.width
    async with opened(queue_pixels=3 * side**2) as jobs:
        with pytest.raises(InvalidRequest, match="Ask for a smaller size"):
            ask(jobs, "steps 1", count=4)
        first = ask(jobs, "steps 1000000", count=2)
        ask(jobs, "steps 1")
        with pytest.raises(QueueFull, match="may be drawn at once"):
            ask(jobs, "steps 1")
        jobs.cancel(first)
        ask(jobs, "steps 1", count=2)
