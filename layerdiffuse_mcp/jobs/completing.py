"""The end of jobs whose tasks are done: what becomes of the pictures, files on disk, the index.

completer = Completer(settings, index, pictures)
await completer.complete(job)        # once all of its tasks have an outcome; returns when it has ended
"""

import contextlib

import anyio
import anyio.to_thread

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.backends.pictures import PictureRoom
from layerdiffuse_mcp.errors import Cancelled, LayerDiffuseError
from layerdiffuse_mcp.jobs.finishing import finished, together
from layerdiffuse_mcp.jobs.job import Job, State
from layerdiffuse_mcp.jobs.running import failing
from layerdiffuse_mcp.outputs.index import Index
from layerdiffuse_mcp.outputs.writer import saved
from layerdiffuse_mcp.settings import Settings


class Completer:
    """Finishes pictures in picture processes, and writes them into one output folder."""

    def __init__(self, settings: Settings, index: Index, pictures: PictureRoom) -> None:
        self._output = settings.output
        self._index = index
        self._pictures = pictures

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

        return await finished(job.finish, outcome, job.inputs, self._pictures, report, job.id)

    async def _save(self, job: Job, outcome: Outcome) -> None:
        """Put a job's files on disk, all or none, and end it; cancelled before they appear, it leaves none."""
        scope = job.scope

        def write() -> Outcome:
            made = saved(outcome, self._output, lambda: scope.cancel_called, job.id)
            self._index.add(made.images, made.model, job.id, [*made.latents, *made.files])
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


def _throw_away(outcome: Outcome) -> None:
    for path in (*(image.path for image in outcome.images), *outcome.latents, *outcome.files):
        with contextlib.suppress(OSError):
            path.unlink()
