"""From a request to a tool's result: submit, wait with progress, hand back pictures or a handle."""

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult

from layerdiffuse_mcp.errors import Cancelled
from layerdiffuse_mcp.jobs import Job, State
from layerdiffuse_mcp.outcome import Progress
from layerdiffuse_mcp.requests import Request, files_of
from layerdiffuse_mcp.server.results import of_job, preview_of
from layerdiffuse_mcp.server.sendable import utf8
from layerdiffuse_mcp.server.services import Services, services

TICK = 0.01
"""Percent by which progress rises when nothing is known but that time has passed."""
ALMOST = 99.0
"""Percent that only the result itself may pass far."""


class Reporter:
    """Tells a client how far its call is: strictly increasing, of 100."""

    def __init__(self, ctx: Context[Services]) -> None:
        self._ctx = ctx
        self._last = 0.0

    async def __call__(self, progress: Progress) -> None:
        """Send one progress notification."""
        room = 100 - self._last
        self._last = max(progress.fraction * ALMOST, self._last + min(TICK, room / 2))
        await self._ctx.report_progress(self._last, 100, utf8(progress.message))


async def run(
    ctx: Context[Services], request: Request, what: str, *, wait_seconds: float | None = None, preview: bool = False
) -> CallToolResult:
    """Do a request as a job; whoever abandons the call cancels it. Its files are released when the job has ended.

    Raises:
        LayerDiffuseError: whatever the job failed with.
    """
    jobs, contents = services(ctx).jobs, services(ctx).contents
    try:
        job = jobs.submit(request, what)
    except BaseException:
        contents.release(files_of(request))
        raise
    job.at_end = lambda: contents.release(files_of(request))
    try:
        await wait(ctx, job, wait_seconds)
    except BaseException:  # the client cancelled the call or went away
        jobs.cancel(job)
        raise
    if job.state is State.FAILED and job.error is not None:
        raise job.error
    if job.state is State.CANCELLED:
        raise Cancelled(f"{job.id} was cancelled while this call waited for it; it left no pictures.")
    return await result(ctx, job, preview=preview)


async def wait(ctx: Context[Services], job: Job, wait_seconds: float | None) -> None:
    """Wait for a job's end, as long as the caller or the settings allow, reporting progress."""
    known = services(ctx)
    seconds = known.settings.wait_seconds if wait_seconds is None else wait_seconds
    await known.jobs.follow(job, seconds, Reporter(ctx))


async def result(ctx: Context[Services], job: Job, *, preview: bool) -> CallToolResult:
    """What there is to say of a job now."""
    known = services(ctx)
    message = known.jobs.progress(job).message
    images = job.outcome.images if preview and job.outcome else ()
    shown = await preview_of(known.pictures, [image.path for image in images]) if images else None
    return await anyio.to_thread.run_sync(of_job, job, message, shown)
