"""Jobs by their id: wait for some, stop one, list them."""

from typing import Annotated

import anyio
import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import BaseModel, Field

from layerdiffuse_mcp.api.fields import Omittable
from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.errors import JobNotFound
from layerdiffuse_mcp.jobs.job import Job, State
from layerdiffuse_mcp.server.calls import Reporter, results
from layerdiffuse_mcp.server.results import JobResult, plain, with_estimate
from layerdiffuse_mcp.server.services import Services, services
from layerdiffuse_mcp.server.tools.parameters import JobId, Preview, Wait
from layerdiffuse_mcp.wording import short

MOST_JOBS = 32
"""Jobs that one call may wait for."""


class JobResults(BaseModel):
    """The jobs that were asked for, in this order."""

    jobs: list[JobResult] = Field(description="What is known of each, as the call that began it returns it")


class JobLine(BaseModel):
    """A job in a list."""

    job_id: str = Field(description="Id for get_job and cancel_job")
    what: str = Field(description="The tool that began it")
    status: State = Field(description="cancelling: cancelled, and its worker has not stopped yet")
    progress: float = Field(description="0..1")
    message: str = Field(description="What it is doing, or why it failed")
    seconds: float = Field(description="How long it has run")
    images: int = Field(description="Pictures that it made")
    prompt: Omittable[str] = Field(default=None, description="The beginning of its prompt")
    size: Omittable[str] = Field(default=None, description="Width x height of what it draws, in pixels")
    seed: Omittable[int] = Field(default=None, description="Seed of its first picture")


class JobList(BaseModel):
    """Jobs of this server, newest first."""

    jobs: list[JobLine] = Field(description="The newest first")
    total: int = Field(description="How many there are, those beyond the limit included")


class Stopped(BaseModel):
    """What became of a job that was to be cancelled."""

    job_id: str = Field(description="The job's id")
    status: State = Field(description="Its state now; cancelling until its worker has stopped")


async def get_job(
    ctx: Context[Services],
    job_ids: Annotated[
        list[JobId],
        Field(
            min_length=1,
            max_length=MOST_JOBS,
            description="Ids of jobs, from the calls that began them",
            examples=[["job-863032aa"]],
        ),
    ],
    preview: Preview = True,
    include_recipe: Annotated[
        bool, Field(description="Add the recipe, which draws the same again; it is inside each picture, too")
    ] = False,
    wait_seconds: Omittable[Wait] = None,
) -> Annotated[CallToolResult, JobResults]:
    """Wait for jobs and return what each has made: paths, verdicts, alpha facts and one small preview of all; or how
    far those are that take longer. Waiting does not own them: whoever stops waiting stops no job.
    """
    known = services(ctx)
    jobs = [await _job(known, job_id) for job_id in dict.fromkeys(job_ids)]
    deadline = anyio.current_time() + (known.settings.wait_seconds if wait_seconds is None else wait_seconds)
    reporter = Reporter(ctx)
    for job in jobs:
        await known.jobs.follow(job, max(0.0, deadline - anyio.current_time()), reporter)
    return await results(ctx, jobs, preview=preview, recipe=include_recipe)


async def cancel_job(ctx: Context[Services], job_id: JobId) -> Annotated[CallToolResult, Stopped]:
    """Cancel a job: at once while it waits, at its next step while it runs. What it has drawn so far is removed
    permanently; a finished job stays as it is. Returns the state that it has then.
    """
    jobs = services(ctx).jobs
    job = await _job(services(ctx), job_id)
    if job.finished:
        text = f"{job.id} had ended already ({job.status.value}); nothing was changed."
    else:
        jobs.cancel(job)
        stopping = job.status is State.CANCELLING
        text = f"{job.id} is cancelled{'; the next job begins once the worker has stopped' if stopping else ''}."
    return plain(text, Stopped(job_id=job.id, status=job.status))


async def list_jobs(
    ctx: Context[Services],
    status: Omittable[Annotated[State, Field(description="Only jobs in this state; default: all")]] = None,
    limit: Annotated[int, Field(ge=1, le=100, description="How many jobs to list, the newest first")] = 20,
) -> Annotated[CallToolResult, JobList]:
    """List the latest jobs, also of before a restart: what each draws, how far it is, and its id for get_job."""
    jobs = services(ctx).jobs
    known = jobs.newest_first()
    found = [job for job in known if status in (None, job.status)]
    lines = [_line(job, jobs.progress(job).message) for job in found[:limit]]
    text = "\n".join(_in_words(line) for line in lines)
    none = f"No {status} jobs; {len(known)} in other states." if status and known else "No jobs yet."
    return plain(text or none, JobList(jobs=lines, total=len(found)))


async def _job(known: Services, job_id: str) -> Job:
    """The job of that id; raises JobNotFound, which says of another server's how to get its pictures."""
    try:
        return known.jobs.get(job_id)
    except JobNotFound:
        if await anyio.to_thread.run_sync(known.jobs.index.find, job_id, 1) is None:
            raise
        raise JobNotFound(
            f"{job_id} is no job of this server: another one made it. Its pictures are here: find_images lists them, "
            f"and {job_id}-1 can be given to any tool."
        ) from None


def _line(job: Job, message: str) -> JobLine:
    line = JobLine(
        job_id=job.id,
        what=job.what,
        status=job.status,
        progress=round(job.progress.fraction, 4),
        message=str(job.error) if job.error else with_estimate(message, job.seconds_left),
        seconds=round(job.seconds, 1),
        images=len(job.outcome.single) if job.outcome else 0,
    )
    if job.tasks and isinstance(plan := job.tasks[0], DrawPlan):
        line.prompt, line.seed = short(plan.prompt), plan.seed
        line.size = f"{plan.width}x{plan.height}"
    return line


def _in_words(line: JobLine) -> str:
    drawn = f' "{line.prompt}", {line.size}, seed {line.seed}' if line.size else ""
    state = line.status.value if line.message == line.status.value else f"{line.status.value}, {line.message}"
    spent = f", {line.seconds:.1f} s" if line.seconds else ""
    return f"{line.job_id} {line.what}{drawn}: {state} ({line.images} picture{'s' * (line.images != 1)}{spent})"
