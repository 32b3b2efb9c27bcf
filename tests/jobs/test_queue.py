"""The queue: jobs keep their order, can be waited for and cancelled, and always end."""

import threading
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.plan import Inputs, Planned, Task
from layerdiffuse_mcp.backends.backend import Report, WorkerState
from layerdiffuse_mcp.errors import JobNotFound, OutOfMemory, OutputError, QueueFull, WorkerDied
from layerdiffuse_mcp.jobs.job import State
from layerdiffuse_mcp.jobs.queue import Jobs
from layerdiffuse_mcp.settings import Settings
from tests.jobs.opened import ask, open_jobs, reach
from tests.results import files_below
from tests.tasks import drawing, planned

pytestmark = pytest.mark.anyio


async def test_a_job_ends_with_its_outcome(settings: Settings, rehearsal: str):
    async with open_jobs(settings, rehearsal) as jobs:
        job = ask(jobs, "steps 2")
        await jobs.follow(job, 30)
        assert (job.state, job.progress.fraction) == (State.DONE, 1.0)
        assert job.outcome is not None
        assert job.outcome.model == "rehearsal"


async def test_jobs_run_one_at_a_time_in_the_order_they_came(settings: Settings, rehearsal: str):
    async with open_jobs(settings, rehearsal) as jobs:
        queued = [ask(jobs, f"steps {number}") for number in (2, 3, 4)]
        await anyio.sleep(0.01)
        assert [jobs.ahead_of(job) for job in queued] == [0, 1, 2]
        for job in queued:
            await jobs.follow(job, 30)
        starts = [job.started for job in queued if job.started]
        assert starts == sorted(starts)
        assert jobs.backend.state()[0].engine["done"] == ["steps 2", "steps 3", "steps 4"]


async def test_a_wait_ends_when_its_time_is_up_and_the_job_goes_on(settings: Settings, rehearsal: str):
    async with open_jobs(settings, rehearsal) as jobs:
        job = ask(jobs, "steps 100000")
        with anyio.fail_after(60):
            await jobs.follow(job, 0.2)
            assert job.state is State.RUNNING
            while job.progress.fraction == 0:
                await jobs.follow(jobs.get(job.id), 0.05)


async def test_whoever_follows_hears_something_within_a_heartbeat(settings: Settings, rehearsal: str):
    heard: list[Progress] = []

    async with open_jobs(settings, rehearsal, heartbeat=0.1) as jobs:
        await jobs.follow(ask(jobs, "steps 1"), 60)
        with anyio.fail_after(60), anyio.CancelScope() as scope:

            async def tell(progress: Progress) -> None:
                heard.append(progress)
                if len(heard) == 5:
                    scope.cancel()

            await jobs.follow(ask(jobs, "stuck 3"), 60, tell)
    assert len(heard) == 5
    assert all(progress.message for progress in heard)


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
        warm, job, after = ask(jobs, "steps 1"), ask(jobs, "steps 100000"), ask(jobs, "steps 1")
        await jobs.follow(warm, 30)
        await jobs.follow(job, 0.3)
        jobs.cancel(job)
        await jobs.follow(job, 60)
        assert job.state is State.CANCELLED
        await jobs.follow(after, 60)
        assert after.state is State.DONE
        assert after.outcome is not None
        assert warm.outcome is not None
        assert after.outcome.warnings == warm.outcome.warnings  # the same process: it stopped at a step


async def test_whoever_waits_hears_of_a_cancellation_at_once_and_the_next_job_waits_for_the_worker(
    settings: Settings, rehearsal: str
):
    async with open_jobs(settings, rehearsal) as jobs:
        job, after = ask(jobs, "stuck 2"), ask(jobs, "steps 1")
        with anyio.fail_after(30):
            while jobs.backend.state()[0].phase != "busy":
                await anyio.sleep(0.01)
        heard = anyio.Event()

        async def wait() -> None:
            await jobs.follow(job, 50)
            heard.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            jobs.cancel(job)
            assert (job.state, jobs.progress(job).message, job.seconds_left) == (State.CANCELLED, "cancelled", None)
            assert job.status is State.CANCELLING
            with anyio.fail_after(1):
                await heard.wait()
        assert after.state is State.QUEUED
        assert jobs.progress(after).message.startswith("waiting for the worker")
        await jobs.follow(after, 30)
        assert (job.status, after.status) == (State.CANCELLED, State.DONE)


class TwoWorkers:
    """A backend of two workers, each of which works until it is told to stop."""

    workers = 2

    def __init__(self) -> None:
        self.running, self.may_end = 0, anyio.Event()

    async def warm_up(self) -> None:
        raise OSError(24, "Too many open files")

    async def run(self, task: Task, inputs: Inputs, report: Report, worker: int | None = None) -> Outcome:
        self.running += 1
        await self.may_end.wait()
        self.running -= 1
        return Outcome()

    async def unload(self, model: str | None = None) -> list[str]:
        return []

    def state(self) -> list[WorkerState]:
        return [WorkerState("ready", None, {}, worker) for worker in range(self.workers)]

    async def close(self) -> None:
        self.may_end.set()


async def test_as_many_jobs_run_as_there_are_workers(settings: Settings):
    backend = TwoWorkers()
    async with Jobs(backend, settings) as jobs:
        await anyio.wait_all_tasks_blocked()
        first = ask(jobs, "a")
        await anyio.wait_all_tasks_blocked()
        second, third = ask(jobs, "b"), ask(jobs, "c")
        await anyio.wait_all_tasks_blocked()
        assert (backend.running, third.state) == (2, State.QUEUED)
        backend.may_end.set()
        for job in (first, second, third):
            await jobs.follow(job, 5)
            assert job.state is State.DONE


async def test_a_warm_up_that_fails_ends_nothing(settings: Settings, caplog: pytest.LogCaptureFixture):
    async with Jobs(backend := TwoWorkers(), settings) as jobs:
        jobs.warm_up()
        await anyio.wait_all_tasks_blocked()
        backend.may_end.set()
        job = ask(jobs, "a")
        await jobs.follow(job, 5)
        assert job.state is State.DONE
    assert "Too many open files" in caplog.text


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


async def test_a_job_that_is_cancelled_while_its_files_are_written_leaves_none(
    settings: Settings, rehearsal: str, held_writer: tuple[threading.Event, threading.Event]
):
    reached, go_on = held_writer
    async with open_jobs(settings, rehearsal) as jobs:
        job = jobs.submit(planned("draw", seed=0, count=3))
        await reach(reached)
        jobs.cancel(job)
        go_on.set()
        await jobs.follow(job, 30)
        assert job.state is State.CANCELLED
        with anyio.fail_after(30):  # it ended at once for whoever waits; the writer stops where it next looks
            while files_below(settings.output):
                await anyio.sleep(0.01)
        after = jobs.submit(planned("draw", seed=0, count=3))
        await jobs.follow(after, 30)
        assert after.state is State.DONE
        assert len(files_below(settings.output)) == 3  # those of `after` alone


async def test_a_job_whose_files_cannot_be_written_fails_in_words_and_the_next_one_runs(
    settings: Settings, rehearsal: str, tmp_path: Path
):
    settings.output.write_text("no folder")
    async with open_jobs(settings, rehearsal) as jobs:
        job = jobs.submit(planned("draw", seed=0))
        await jobs.follow(job, 30)
        assert isinstance(job.error, OutputError)
        settings.output.unlink()
        after = jobs.submit(planned("draw", seed=0))
        await jobs.follow(after, 30)
        assert after.state is State.DONE


@pytest.mark.parametrize("prompt", ["steps 1", "refused", "killed"])
async def test_what_a_job_held_is_released_once_when_it_has_ended(settings: Settings, rehearsal: str, prompt: str):
    released = list[str]()
    async with open_jobs(settings, rehearsal) as jobs:
        job = ask(jobs, prompt)
        job.at_end.append(lambda: released.append(job.state.value))
        await jobs.follow(job, 30)
        assert len(released) == 1
        jobs.cancel(job)
    assert released == [job.state.value]


async def test_a_full_queue_refuses_and_says_what_to_do(settings: Settings, rehearsal: str):
    async with open_jobs(settings.model_copy(update={"queue_size": 2}), rehearsal) as jobs:
        ask(jobs, "steps 100000")
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
        running, waiting = ask(jobs, "steps 100000"), ask(jobs, "steps 1")
        await jobs.follow(running, 1)
    assert running.finished
    assert waiting.state is State.CANCELLED


async def test_a_job_of_several_tasks_ends_with_its_last_and_keeps_all_files(settings: Settings, rehearsal: str):
    tasks = tuple(drawing("draw", seed=seed) for seed in (1, 2, 3))
    async with open_jobs(settings, rehearsal) as jobs:
        job = jobs.submit(Planned(tasks), "a set")
        refused = jobs.submit(Planned((drawing("draw", seed=7), drawing("refused"), drawing("draw", seed=8))))
        for one in (job, refused):
            await jobs.follow(one, 30)
    assert job.outcome is not None
    assert [image.seed for image in job.outcome.images] == [1, 2, 3]
    assert all(image.path.is_file() for image in job.outcome.images)
    assert refused.state is State.FAILED
    assert len(list(settings.output.rglob("*.png"))) == 3


async def test_unloading_waits_for_the_task_and_for_no_job_that_waits(settings: Settings, rehearsal: str):
    async with open_jobs(settings, rehearsal) as jobs:
        assert await jobs.backend.unload() == []
        assert jobs.backend.state()[0].phase == "stopped"
        running, waiting = ask(jobs, "steps 20"), ask(jobs, "steps 1000000")
        with anyio.fail_after(60):
            while running.progress.fraction == 0:
                await anyio.sleep(0.01)
            assert await jobs.backend.unload() == ["steps 20"]
            await jobs.follow(running, 60)  # its files are written beside the worker
        assert running.state is State.DONE
        assert not waiting.finished
