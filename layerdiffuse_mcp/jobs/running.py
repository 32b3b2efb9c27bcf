"""Running jobs: their tasks on a worker, what becomes of the pictures, files on disk, the end.

    runner = Runner(backend, settings, index, pictures, learn)
    await runner.run(job)              # returns when it has ended, whatever it met

It chooses nothing: which job is next is the queue's affair.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Generator, Sequence
from typing import cast

import anyio
import anyio.to_thread

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.plan import DrawPlan, GroupPlan, Task
from layerdiffuse_mcp.backends.backend import Backend
from layerdiffuse_mcp.backends.pictures import PictureRoom
from layerdiffuse_mcp.errors import Cancelled, LayerDiffuseError, WorkerDied
from layerdiffuse_mcp.jobs.finishing import finished, together
from layerdiffuse_mcp.jobs.job import Job, State
from layerdiffuse_mcp.outputs.index import Index
from layerdiffuse_mcp.outputs.writer import saved
from layerdiffuse_mcp.settings import Settings

LEFT = re.compile(r", about [0-9]+ s left$")
DRAWN = 0.95
"""Share of its tasks, where its pictures are finished after them."""

Learn = Callable[[Sequence[Task], Sequence[Outcome]], None]

logger = logging.getLogger(__name__)


class Runner:
    """Runs jobs on a backend.

    Args:
        learn: hears what tasks took, in their outcomes.
    """

    def __init__(self, backend: Backend, settings: Settings, index: Index, pictures: PictureRoom, learn: Learn) -> None:
        self.backend = backend
        self.index = index
        self._settings = settings
        self._pictures = pictures
        self._learn = learn

    async def run(self, job: Job) -> None:
        """Run a job's tasks one after another, and end it."""
        job.begin()
        before = job.progress.fraction
        outcomes: list[Outcome] = []

        count = len(job.tasks)
        share = (1 - before) * (DRAWN if job.finish else 1.0) / count

        def report(progress: Progress) -> None:
            number, message = len(outcomes), progress.message
            if count > 1:  # the time that is left of one task would mislead: that of the job is its own to tell
                message = f"{number + 1} of {count}: {LEFT.sub('', message)}"
            fraction = min(1.0, before + share * (number + progress.fraction))
            job.report(Progress(fraction=fraction, message=message))

        try:
            with failing(job), job.scope:
                for task in job.tasks:
                    outcomes.append(await self.backend.run(task, job.inputs, report))
                await self._save(job, await self._finished(job, together(outcomes)))
            self._learn(job.tasks, outcomes)
        finally:
            job.end(State.CANCELLED)
            job.occupies = False

    async def _finished(self, job: Job, outcome: Outcome) -> Outcome:
        """The outcome, once its pictures have become what they are to be."""
        if job.finish is None:
            return outcome
        before = job.progress.fraction

        def report(progress: Progress) -> None:
            job.report(progress.model_copy(update={"fraction": before + (1 - before) * progress.fraction}))

        return await finished(job.finish, outcome, job.inputs, self._pictures, report)

    async def run_group(self, jobs: list[Job]) -> None:
        """Draw jobs as one batch; if that fails, one after another, so that each meets only its own error."""
        for job in jobs:
            job.begin(jobs)

        def report(progress: Progress) -> None:
            for job in jobs:
                job.report(progress)

        try:
            with jobs[0].scope:
                group = GroupPlan(plans=tuple(cast(DrawPlan, job.tasks[0]) for job in jobs))
                outcome = await self.backend.run(group, jobs[0].inputs, report)
                for job, part in zip(jobs, outcome.parts, strict=True):
                    if not job.finished:
                        job.group, job.scope = [job], anyio.CancelScope()  # from here on it can be stopped alone
                        with failing(job), job.scope:
                            await self._save(job, await self._finished(job, part))
                self._learn([group], [outcome])
        except Exception:  # of one of them, as a rule; it comes again for that one
            logger.info("a group of %s jobs failed: each runs alone", len(jobs), exc_info=True)
            for job in jobs:
                if not job.finished:
                    await self.run(job)
        finally:
            for job in jobs:
                job.end(State.CANCELLED)
                job.occupies = False

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
