"""Running jobs: tasks on a worker, what becomes of the pictures, files on disk, the end.

    runner = Runner(backend, settings, index, pictures, learn)
    again = await runner.draw(batch)     # parts that have to come once more, each alone
    await runner.complete(job)           # once all of its tasks have an outcome; returns when it has ended

It chooses nothing: what is next is the queue's affair.
"""

import contextlib
import logging
from collections.abc import Callable, Generator
from typing import cast

import anyio
import anyio.to_thread

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.plan import DrawPlan, GroupPlan, Task
from layerdiffuse_mcp.backends.backend import Backend, Report
from layerdiffuse_mcp.backends.pictures import PictureRoom
from layerdiffuse_mcp.errors import Cancelled, LayerDiffuseError, WorkerDied
from layerdiffuse_mcp.jobs.finishing import finished, together
from layerdiffuse_mcp.jobs.job import Batch, Job, Part, State
from layerdiffuse_mcp.outputs.index import Index
from layerdiffuse_mcp.outputs.writer import saved
from layerdiffuse_mcp.settings import Settings

Learn = Callable[[Task, Outcome], None]

logger = logging.getLogger(__name__)


class Runner:
    """Runs tasks on a backend.

    Args:
        learn: hears what a task took, in its outcome.
    """

    def __init__(self, backend: Backend, settings: Settings, index: Index, pictures: PictureRoom, learn: Learn) -> None:
        self.backend = backend
        self.index = index
        self._settings = settings
        self._pictures = pictures
        self._learn = learn

    async def draw(self, batch: Batch) -> list[Part]:
        """Have a batch drawn, whose jobs have begun it; a job whose own task fails ends with that.

        Returns the parts that are to be drawn again, each alone: all that are wanted still of a batch that failed, for
        the error is one's alone as a rule.
        """
        jobs = batch.jobs

        def report(progress: Progress) -> None:
            for job, indices in jobs.items():
                job.report_on(indices, progress)

        try:
            with batch.scope:
                await self._draw(batch, report)
        except Exception as error:
            if len(batch.parts) > 1:
                logger.info("a batch of %s tasks failed: each is drawn alone", len(batch.parts), exc_info=True)
                return [part for part in batch.parts if not part.job.finished]
            with failing(next(iter(batch.parts)).job):
                raise error
        finally:
            for job in jobs:
                job.batches.remove(batch)
        return []

    async def _draw(self, batch: Batch, report: Report) -> None:
        tasks: list[Task] = [part.task for part in batch.parts]
        task = tasks[0] if len(tasks) == 1 else GroupPlan(plans=tuple(cast("list[DrawPlan]", tasks)))
        outcome = await self.backend.run(task, batch.parts[0].job.inputs, report, batch.worker)
        outcomes = (outcome,) if len(tasks) == 1 else outcome.parts
        for part, one in zip(batch.parts, outcomes, strict=True):
            if not part.job.finished:
                part.job.drawn(part.index, one)
        self._learn(task, outcome)

    async def complete(self, job: Job) -> None:
        """Finish the pictures of a job all of whose tasks are done, write its files, and end it."""
        if job.finished:  # cancelled meanwhile
            return
        job.scope = anyio.CancelScope()
        try:
            with failing(job), job.scope:
                outcome = together([job.outcomes[index] for index in range(len(job.tasks))])
                await self._save(job, await self._finished(job, outcome))
        finally:
            job.end(State.CANCELLED)

    async def _finished(self, job: Job, outcome: Outcome) -> Outcome:
        """The outcome, once its pictures have become what they are to be."""
        if job.finish is None:
            return outcome
        before = job.progress.fraction

        def report(progress: Progress) -> None:
            job.report(progress.model_copy(update={"fraction": before + (1 - before) * progress.fraction}))

        return await finished(job.finish, outcome, job.inputs, self._pictures, report)

    async def _save(self, job: Job, outcome: Outcome) -> None:
        """Put a job's files on disk, all or none, and end it; cancelled before they appear, it leaves none."""
        scope = job.scope

        def write() -> Outcome:
            made = saved(outcome, self._settings.output, lambda: scope.cancel_called, job.id)
            self.index.add(made.images, made.model, job.id, [*made.latents, *made.files])
            return made

        try:
            made = await anyio.to_thread.run_sync(write)
        except Cancelled:
            job.end(State.CANCELLED)
        except LayerDiffuseError as error:
            job.end(State.FAILED, error=error)
        else:
            if job.finished:  # cancelled in the moment in which they appeared
                _throw_away(made)
            job.end(State.DONE, made)


@contextlib.contextmanager
def failing(job: Job) -> Generator[None]:
    """End the job with the error that the block raises."""
    try:
        yield
    except LayerDiffuseError as error:
        job.end(State.FAILED, error=error)
    except Exception:  # a bug in the backend must not take the queue with it
        logger.exception("%s failed unexpectedly", job.id)
        job.end(State.FAILED, error=WorkerDied("The backend failed unexpectedly; the server's log says how."))


def _throw_away(outcome: Outcome) -> None:
    for path in (*(image.path for image in outcome.images), *outcome.latents, *outcome.files):
        with contextlib.suppress(OSError):
            path.unlink()
