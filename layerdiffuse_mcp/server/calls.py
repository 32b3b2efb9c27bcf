"""From a request to a tool's result: submit, wait with progress, hand back pictures or a handle."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.plan import Planned
from layerdiffuse_mcp.api.requests import Request, files_of
from layerdiffuse_mcp.errors import Cancelled, InvalidRequest, LayerDiffuseError
from layerdiffuse_mcp.images.tasks import Shown
from layerdiffuse_mcp.jobs.job import Job, State
from layerdiffuse_mcp.jobs.queue import Jobs
from layerdiffuse_mcp.server.results import facts_of, of_job, plain, preview_of, together
from layerdiffuse_mcp.server.sendable import utf8
from layerdiffuse_mcp.server.services import Services, services
from layerdiffuse_mcp.wording import quoted

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
    ctx: Context[Services],
    request: Request,
    what: str,
    *,
    wait_seconds: float | None = None,
    preview: bool = False,
    fetch: bool = False,
    key: str | None = None,
) -> CallToolResult:
    """Do a request as a job; whoever abandons the call cancels it. Its files are released when the job has ended.

    `key`: a call with the same one before has begun the job; what becomes of that is returned, if the same was asked.
    `fetch`: the person at the client agreed that what its model lacks is fetched, whatever the settings say.

    Raises:
        LayerDiffuseError: what the planner refused, at once, or whatever the job failed with.
    """
    from layerdiffuse_mcp.hub.consent import check_licences
    from layerdiffuse_mcp.jobs.planner import plan

    settings = services(ctx).settings

    def planned_and_allowed() -> Planned:
        if fetch:
            return plan(request, settings.model_copy(update={"auto_download": True}))
        planned = plan(request, settings)
        check_licences(planned.downloads, settings)
        return planned

    jobs, contents = services(ctx).jobs, services(ctx).contents
    asked = digest(request, what)
    try:
        if (known := begun(jobs, key, asked)) is not None:
            job = known
        else:
            planned = await anyio.to_thread.run_sync(planned_and_allowed)
            known = begun(jobs, key, asked)  # a call beside this one may have begun it meanwhile
            job = known or jobs.submit(planned, what, client_of(ctx), key, asked)
    except BaseException:
        contents.release(files_of(request))
        raise
    if known:
        contents.release(files_of(request))
    else:
        job.at_end.append(lambda: contents.release(files_of(request)))
    try:
        await wait(ctx, job, wait_seconds)
    except BaseException:  # the client cancelled the call or went away
        if not known:
            jobs.cancel(job)
        raise
    if job.state is State.FAILED and job.error is not None:
        raise job.error
    if job.state is State.CANCELLED:
        raise Cancelled(f"{job.id} was cancelled while this call waited for it; it left no pictures.")
    return await result(ctx, job, preview=preview)


_FOLLOWED = {"__all__": {"image"}}
_COPIES: Any = {
    **dict.fromkeys(("image", "mask", "inputs", "latent"), True),
    "control": _FOLLOWED,
    "pictures": {"__all__": {"control": _FOLLOWED}},
}
"""Fields of requests that name copies of pictures, whose paths are this server's own."""


def digest(request: Request, what: str) -> str:
    """What stands for a request and its tool: equal where words, settings and the content of all pictures are."""
    contents = [path.parent.name for path in files_of(request)]
    fields = request.model_dump(mode="json", exclude=_COPIES)
    return hashlib.sha256(json.dumps([what, contents, fields]).encode()).hexdigest()


def begun(jobs: Jobs, key: str | None, asked: str) -> Job | None:
    """The job that was begun with a key, if there is one.

    Raises:
        InvalidRequest: with that key something else was asked for.
    """
    job = jobs.by_key(key)
    if job is not None and job.asked not in (None, asked):
        raise InvalidRequest(
            f"output.key: {quoted(key)} stands for {job.id}, which was asked for something else. Give a key of its own "
            f"to this call, or get that one by get_job."
        )
    return job


def client_of(ctx: Context[Services]) -> str:
    """Whose call it is, as far as fairness goes: a token's, else a session's, else a connection's; stdio is one."""
    if name := services(ctx).name:
        return name
    request = ctx.request_context.request
    peer = getattr(request, "client", None)
    session = ctx.headers.get("mcp-session-id") if ctx.headers else None
    return session or (f"{peer.host}:{peer.port}" if peer else "")


async def unload(ctx: Context[Services], model: str | None, wait_seconds: float | None = None) -> CallToolResult:
    """Have every worker drop a model, or all, as soon as it is between two tasks: ahead of all jobs that wait.

    Raises:
        LayerDiffuseError: a worker was busy for longer than the call may wait; nothing was unloaded there.
    """
    known = services(ctx)
    dropped: list[str] | None = None
    with anyio.move_on_after(known.settings.wait_seconds if wait_seconds is None else wait_seconds):
        dropped = await known.jobs.backend.unload(model)
    if dropped is None:
        raise LayerDiffuseError(
            "A worker is still busy with a job, and nothing was unloaded there. Call again when that has ended, or end "
            "it with cancel_job (list_jobs names it)."
        )
    none = "no model was" if model is None else f"{model} was not"
    text = f"Unloaded: {', '.join(dropped)}." if dropped else f"Nothing was unloaded: {none} in memory."
    job = known.jobs.record("unload_models", Outcome(status={"unloaded": dropped}))
    return plain(text, facts_of(job, text).model_copy(update={"message": text}))


async def wait(ctx: Context[Services], job: Job, wait_seconds: float | None) -> None:
    """Wait for a job's end, as long as the caller or the settings allow, reporting progress."""
    known = services(ctx)
    seconds = known.settings.wait_seconds if wait_seconds is None else wait_seconds
    await known.jobs.follow(job, seconds, Reporter(ctx))


async def result(ctx: Context[Services], job: Job, *, preview: bool) -> CallToolResult:
    """What there is to say of a job now."""
    known = services(ctx)
    shown = await _preview(known, [job]) if preview else None
    return await anyio.to_thread.run_sync(of_job, job, known.jobs.progress(job).message, shown)


async def results(ctx: Context[Services], jobs: Sequence[Job], *, preview: bool, recipe: bool) -> CallToolResult:
    """What there is to say of several jobs now, their pictures numbered through and shown together."""
    known = services(ctx)
    shown = await _preview(known, jobs) if preview else None

    def said() -> list[CallToolResult]:
        parts: list[CallToolResult] = []
        first = 1
        for job in jobs:
            message = known.jobs.progress(job).message
            parts.append(of_job(job, message, None, first, several=len(jobs) > 1, recipe=recipe))
            first += len(job.outcome.single) if job.outcome else 0
        return parts

    return together(await anyio.to_thread.run_sync(said), shown)


async def _preview(known: Services, jobs: Sequence[Job]) -> Shown | None:
    paths = [image.path for job in jobs if job.outcome for image in job.outcome.single]
    return await preview_of(known.pictures, paths) if paths else None
