"""Jobs by their id: wait for one, stop one, list them."""

from typing import Annotated

from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import BaseModel, Field

from layerdiffuse_mcp.api.fields import Omittable
from layerdiffuse_mcp.jobs.job import Job, State
from layerdiffuse_mcp.server.calls import result, wait
from layerdiffuse_mcp.server.results import JobResult, facts_of, plain
from layerdiffuse_mcp.server.services import Services, services
from layerdiffuse_mcp.server.tools.parameters import JobId, Preview, Wait


class JobLine(BaseModel):
    """A job in a list."""

    job_id: str
    what: str
    status: State
    progress: float
    message: str
    seconds: float
    images: int


class JobList(BaseModel):
    """Jobs of this server, newest first."""

    jobs: list[JobLine]
    total: int


class Stopped(BaseModel):
    """What became of a job that was to be cancelled."""

    job_id: str
    status: State


async def get_job(
    ctx: Context[Services], job_id: JobId, preview: Preview = True, wait_seconds: Omittable[Wait] = None
) -> Annotated[CallToolResult, JobResult]:
    """Wait for a job and get its full result, or its progress if it is not done in time. Waiting does not own it."""
    job = services(ctx).jobs.get(job_id)
    await wait(ctx, job, wait_seconds)
    return await result(ctx, job, preview=preview)


async def cancel_job(ctx: Context[Services], job_id: JobId) -> Annotated[CallToolResult, Stopped]:
    """Stop a job: at once while it waits, at its next step while it runs. A finished job stays as it is."""
    jobs = services(ctx).jobs
    job = jobs.get(job_id)
    if job.finished:
        text = f"{job.id} had ended already ({job.state.value}); nothing was changed."
    else:
        ran = job.state is State.RUNNING
        jobs.cancel(job)
        text = f"{job.id} is cancelled{'; the next job begins once the worker has stopped' if ran else ''}."
    return plain(text, Stopped(job_id=job.id, status=job.state))


async def list_jobs(
    ctx: Context[Services],
    status: Omittable[Annotated[State, Field(description="Only jobs in this state; default: all")]] = None,
    limit: Annotated[int, Field(ge=1, le=100, description="How many jobs to list, the newest first")] = 20,
) -> Annotated[CallToolResult, JobList]:
    """List the jobs of this server since it started."""
    jobs = services(ctx).jobs
    found = [job for job in jobs.newest_first() if status in (None, job.state)]
    lines = [_line(job, jobs.progress(job).message) for job in found[:limit]]
    text = "\n".join(f"{line.job_id} {line.what}: {_state(line)} ({line.images} pictures)" for line in lines)
    return plain(text or "No jobs yet.", JobList(jobs=lines, total=len(found)))


def _line(job: Job, message: str) -> JobLine:
    facts = facts_of(job, message)
    return JobLine(
        job_id=job.id,
        what=job.what,
        status=job.state,
        progress=round(job.progress.fraction, 4),
        message=facts.error or message,
        seconds=round(job.seconds, 1),
        images=len(facts.images),
    )


def _state(line: JobLine) -> str:
    return line.status.value if line.message == line.status.value else f"{line.status.value}, {line.message}"
