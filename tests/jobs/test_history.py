"""Jobs outlast their server: what was made answers, what ran says so, and what waited may be done after all."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from layerdiffuse_mcp.api.cells import Cell
from layerdiffuse_mcp.api.finish import IntoCells
from layerdiffuse_mcp.api.plan import Planned
from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.errors import Interrupted, OutOfMemory
from layerdiffuse_mcp.jobs import kept
from layerdiffuse_mcp.jobs.history import JobHistory
from layerdiffuse_mcp.jobs.job import Job, State
from layerdiffuse_mcp.jobs.queue import Jobs
from layerdiffuse_mcp.outputs import records
from layerdiffuse_mcp.outputs.index import Index, index_file
from layerdiffuse_mcp.outputs.records import JobRecords, Record
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
        changed = settings.model_copy(update=changes)
        async with Jobs(LocalBackend(changed, rehearsal), changed) as jobs:
            yield jobs

    return open_jobs


async def busy(jobs: Jobs) -> tuple[Job, Job, Job]:
    """One that runs, and two that wait: the second starts from a picture."""
    running, waiting = ask(jobs, "steps 1000000"), ask(jobs, "draw", seed=5)
    given = jobs.submit(Planned((drawing("draw"),), {"ab" * 32: Path("gone.png")}))
    with anyio.fail_after(60):
        while running.progress.fraction == 0:
            await anyio.sleep(0.01)
    return running, waiting, given


async def test_jobs_that_ended_answer_after_a_restart(opened: Open):
    async with opened() as jobs:
        done, failed = jobs.submit(planned("draw", seed=3, count=2), "a drawing"), ask(jobs, "refused")
        for job in (done, failed):
            await jobs.follow(job, 60)
    async with opened() as jobs:
        before, refused = jobs.get(done.id), jobs.get(failed.id)
        assert jobs.newest_first() == [refused, before]
    assert (before.what, before.state, before.tasks) == ("a drawing", State.DONE, done.tasks)
    assert before.outcome is not None
    assert done.outcome is not None
    assert before.outcome.images == done.outcome.images
    assert before.seconds == pytest.approx(done.seconds, abs=0.5)
    assert isinstance(refused.error, OutOfMemory)
    assert str(refused.error) == str(failed.error)


async def test_jobs_that_had_not_ended_are_interrupted_unless_they_waited_and_are_to_be_resumed(opened: Open):
    async with opened() as jobs:
        running, waiting, given = await busy(jobs)
    async with opened() as jobs:
        again = [jobs.get(job.id) for job in (running, waiting, given)]
        assert [job.state for job in again] == [State.INTERRUPTED] * 3
        assert all(isinstance(job.error, Interrupted) for job in again)
        assert "while this job ran" in str(again[0].error)
        assert jobs.waiting == 0


async def test_a_job_that_waited_is_done_by_the_next_server_if_that_is_set(opened: Open, settings: Settings):
    async with opened(resume_jobs=True) as jobs:
        running, waiting, given = await busy(jobs)
    async with opened(resume_jobs=True) as jobs:
        states = [jobs.get(job.id).state for job in (running, waiting, given)]
        assert states == [State.INTERRUPTED, State.QUEUED, State.INTERRUPTED]
        resumed = jobs.get(waiting.id)
        await jobs.follow(resumed, 60)
        assert resumed.state is State.DONE
        assert resumed.outcome is not None
        assert resumed.outcome.images[0].seed == 5
    async with opened() as jobs:
        assert jobs.get(waiting.id).state is State.DONE


async def test_the_pictures_that_a_waiting_job_starts_from_are_kept_until_it_has_ended(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def submit(jobs: Jobs, name: str) -> Job:
        picture = tmp_path / name
        picture.write_bytes(name.encode())
        return jobs.submit(Planned((drawing("draw"),), {"ab" * 32: picture}))

    monkeypatch.setattr(kept, "LARGEST", 10)
    async with opened(resume_jobs=True) as jobs:
        ask(jobs, "steps 1000000")
        small, large = submit(jobs, "cup.png"), submit(jobs, "a-long-name.png")
    for name in ("cup.png", "a-long-name.png"):
        (tmp_path / name).unlink()
    async with opened(resume_jobs=True, share_workers=False) as jobs:
        again, gone = jobs.get(small.id), jobs.get(large.id)
        assert [path.read_text() for path in again.inputs.values()] == ["cup.png"]
        await jobs.follow(again, 60)
        assert again.state is State.DONE
        assert gone.state is State.INTERRUPTED
        assert "copies of the pictures that it starts from are gone" in str(gone.error)
    assert not any(path.is_file() for path in (tmp_path / "state" / "layerdiffuse" / "given").rglob("*"))


async def test_a_key_stands_for_its_job_also_after_a_restart_unless_that_failed(opened: Open):
    async with opened() as jobs:
        job = jobs.submit(planned("draw", seed=1), key="mine")
        failed = jobs.submit(planned("refused"), key="failed")
        for one in (job, failed):
            await jobs.follow(one, 60)
        assert jobs.by_key("mine") is job
        assert jobs.by_key("failed") is jobs.by_key("other") is None
    async with opened() as jobs:
        again = jobs.by_key("mine")
        assert again is not None
        assert again.id == job.id
        again.created -= 25 * 3600
        assert jobs.by_key("mine") is None


async def test_without_history_nothing_is_written_down(opened: Open):
    async with opened(history=False) as jobs:
        job = ask(jobs, "steps 1")
        await jobs.follow(job, 60)
    assert not index_file().exists()
    async with opened(history=False) as jobs:
        assert jobs.newest_first() == []


async def test_jobs_of_a_server_that_still_runs_are_its_own(opened: Open):
    async with opened() as first:
        job = ask(first, "steps 1")
        await first.follow(job, 60)
        async with opened(resume_jobs=True) as second:
            assert second.newest_first() == []
    async with opened() as third:
        assert [one.id for one in third.newest_first()] == [job.id]


def record(number: int, **fields: object) -> Record:
    known = Record(f"job-{number}", "x", "", None, "done", float(number), None, None, "{}", None, None, None)
    return known._replace(**fields)


def test_the_oldest_of_many_are_forgotten(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(records, "LATEST", 3)
    kept = JobRecords(Index(settings))
    kept.keep([record(number) for number in range(10)])
    kept.leave()
    assert [one.id for one in JobRecords(Index(settings)).adopted()] == ["job-7", "job-8", "job-9"]


async def test_what_another_version_wrote_down_is_passed_over(settings: Settings):
    kept = JobRecords(Index(settings))
    kept.keep([record(1, planned='{"tasks": [{"kind": "dance"}]}'), record(2, state="dreaming")])
    kept.leave()
    numbers = iter(range(1, 100))
    assert await JobHistory(JobRecords(Index(settings))).restored(numbers, resume=True) == []


async def test_what_becomes_of_the_pictures_is_written_down_too(opened: Open):
    finish = IntoCells(("a cup",), Cell(size="64x64"), sheet=True, name="cups", format="png")
    async with opened() as jobs:
        ask(jobs, "steps 1000000")
        waiting = jobs.submit(Planned((drawing("draw"),), finish=finish))
        await anyio.sleep(0.05)
    async with opened(resume_jobs=True) as jobs:
        assert jobs.get(waiting.id).finish == finish
