"""What jobs lack is fetched beside the queue: it occupies no worker.

downloads = Downloads(settings, backend)
await downloads.fetch(job)         # a few at once; further ones wait
"""

import anyio
import anyio.from_thread
import anyio.to_thread

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.backends.backend import Backend
from layerdiffuse_mcp.errors import Cancelled
from layerdiffuse_mcp.jobs.job import Job, State
from layerdiffuse_mcp.jobs.running import failing
from layerdiffuse_mcp.settings import Settings

DOWNLOADING = 2
"""Jobs that download at once."""
DOWNLOADED = 0.9
"""Share of a job that its downloads take."""


class Downloads:
    """Fetches the files of jobs: here, in threads, then wherever else the backend's workers run."""

    def __init__(self, settings: Settings, backend: Backend) -> None:
        self._settings = settings
        self._backend = backend
        self._limiter = anyio.CapacityLimiter(DOWNLOADING)

    @property
    def under_way(self) -> int:
        """How many there are now, those of cancelled jobs that are about to stop included."""
        return self._limiter.borrowed_tokens

    async def fetch(self, job: Job) -> None:
        """Fetch what a job lacks; it has ended then if it has no task, or could not be given it."""
        with failing(job), job.scope:
            notes = await anyio.to_thread.run_sync(self._fetch, job, limiter=self._limiter)
            await self._backend.prepare(job.downloads, job.report)
            if not job.tasks:
                job.end(State.DONE, Outcome(model=job.downloads[-1].model, warnings=notes))

    def _fetch(self, job: Job) -> tuple[str, ...]:
        """In a thread: the downloads of a job, until it is cancelled; what went wrong on the way and was put right."""
        from layerdiffuse_mcp.hub.download import prepare_all  # the hub's library takes 0.3 s to import

        share = DOWNLOADED if job.tasks else 1.0

        def report(progress: Progress) -> None:
            if job.finished:
                raise Cancelled("The job was cancelled.")
            progress = progress.model_copy(update={"fraction": share * progress.fraction})
            anyio.from_thread.run_sync(job.report, progress)

        return tuple(note for done in prepare_all(job.downloads, self._settings, report) for note in done.notes)
