"""The queue: every request becomes a job, and every job ends as done, failed or cancelled.

    async with Jobs(backend, settings) as jobs:
        job = jobs.submit(GenerateRequest(prompt="a red apple"))
        await jobs.follow(job, seconds=50, tell=print)   # or whatever shows progress
        if job.state is State.DONE:
            show(job.outcome.images)

Jobs run in the order in which they came, one a worker; or with `group_jobs` a job together
with those waiting that can share its batch. A job outlives the call that submitted it. One
that is cancelled has ended at once for whoever waits for it; the worker that ran it takes the
next one as soon as it has stopped. This module knows no MCP and no model, and its state lives
in one event loop: nothing here is shared with threads.
"""

import contextlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from enum import StrEnum
from types import TracebackType
from typing import cast

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from layerdiffuse_mcp.backends import Backend
from layerdiffuse_mcp.errors import Cancelled, JobNotFound, LayerDiffuseError, QueueFull, WorkerDied, quoted
from layerdiffuse_mcp.outcome import ImageResult, Outcome, Progress
from layerdiffuse_mcp.outputs.writer import saved
from layerdiffuse_mcp.requests import GenerateRequest, GroupRequest, Request, batch_key, near
from layerdiffuse_mcp.settings import Settings

HEARTBEAT = 3.0
"""Longest silence towards whoever follows a job, in seconds."""
KEPT = 200
"""Finished jobs that are remembered; their pictures stay on disk for ever."""
GROUP_RESULTS = 8
"""Most results that are drawn as one group."""

logger = logging.getLogger(__name__)


class State(StrEnum):
    """The life of a job, in order; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({State.DONE, State.FAILED, State.CANCELLED})
Tell = Callable[[Progress], Awaitable[None]]


class Job:
    """One request on its way. Read it freely; only `Jobs` changes it.

    Jobs of one `batch_key` can be drawn as one batch; one without a key is drawn alone.
    """

    def __init__(self, what: str, request: Request | None, batch_key: str | None = None) -> None:
        self.id = f"job-{secrets.token_hex(4)}"
        self.what = what
        self.request = request
        self.batch_key = batch_key
        self.state = State.QUEUED
        self.progress = Progress(fraction=0.0, message="waiting")
        self.outcome: Outcome | None = None
        self.error: LayerDiffuseError | None = None
        self.created = time.time()
        self.started: float | None = None
        self.ended: float | None = None
        self.scope = anyio.CancelScope()
        self.group: list[Job] = [self]
        self.changed = anyio.Event()
        self.at_end: Callable[[], None] = _nothing

    @property
    def finished(self) -> bool:
        """Whether the state is final."""
        return self.state in FINAL

    @property
    def seconds(self) -> float:
        """How long it has run, or ran."""
        return 0.0 if self.started is None else (self.ended or time.time()) - self.started

    @property
    def seconds_left(self) -> float | None:
        """A guess from the progress made so far; None while there is nothing to guess from."""
        fraction = self.progress.fraction
        if self.state is not State.RUNNING or fraction < 0.05:
            return None
        return self.seconds * (1 - fraction) / fraction

    def image(self, number: int) -> ImageResult | None:
        """The picture of that number, from 1."""
        images = self.outcome.images if self.outcome else ()
        return images[number - 1] if 1 <= number <= len(images) else None

    def _announce(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    def report(self, progress: Progress) -> None:
        """Take note of progress, which ends with the job; the fraction never falls."""
        if self.finished:
            return
        if progress.fraction < self.progress.fraction:
            progress = progress.model_copy(update={"fraction": self.progress.fraction})
        self.progress = progress
        self._announce()

    def begin(self, group: "list[Job] | None" = None) -> None:
        """Its turn has come, alone or in a group, which is stopped as a whole."""
        self.group = group or [self]
        self.scope = self.group[0].scope if group else anyio.CancelScope()
        self.state, self.started = State.RUNNING, time.time()
        self.report(Progress(fraction=0.0, message="starting"))

    def end(self, state: State, outcome: Outcome | None = None, error: LayerDiffuseError | None = None) -> None:
        """It has ended in a final state; the first end is the one that counts."""
        if self.finished:
            return
        self.state, self.outcome, self.error, self.ended = state, outcome, error, time.time()
        fraction = 1.0 if state is State.DONE else self.progress.fraction
        self.progress = Progress(fraction=fraction, message=state.value)
        self.at_end()
        self.at_end = _nothing
        self._announce()


class Jobs:
    """A bounded queue in front of a backend.

    Args:
        backend: where requests run; closed with the queue.
        settings: `queue_size` bounds how many jobs may wait.
        heartbeat: longest silence of `follow`, in seconds.
    """

    def __init__(self, backend: Backend, settings: Settings, heartbeat: float = HEARTBEAT) -> None:
        self.backend = backend
        self._limit = settings.queue_size
        self._output = settings.output
        self._grouping = settings.group_jobs
        self._heartbeat = heartbeat
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._arrivals = anyio.Semaphore(0)
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> "Jobs":
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        for _ in range(self.backend.workers):
            self._tasks.start_soon(self._work)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._tasks is not None
        for job in self._jobs.values():
            self.cancel(job)
        await self.backend.close()
        self._tasks.cancel_scope.cancel()
        return await self._tasks.__aexit__(kind, error, trace)

    def warm_up(self) -> None:
        """Start the backend's workers in the background."""
        assert self._tasks is not None
        self._tasks.start_soon(self._warm_up)

    def submit(self, request: Request, what: str | None = None) -> Job:
        """Queue a request.

        Args:
            request: what to do.
            what: how lists of jobs call it; the request's kind when left out.

        Raises:
            QueueFull: as many jobs wait as may wait.
        """
        if len(self._waiting) >= self._limit:
            raise QueueFull(
                f"{len(self._waiting)} jobs wait already, and no more may. "
                "Wait for one with get_job, or cancel one with cancel_job (list_jobs names them)."
            )
        job = self._remember(Job(what or request.kind, request, _key(request) if self._grouping else None))
        self._waiting.append(job)
        self._arrivals.release()
        return job

    def record(self, what: str, outcome: Outcome) -> Job:
        """Remember work that was done without a worker, so that its pictures have a name too."""
        job = Job(what, None)
        job.started = job.created
        job.end(State.DONE, outcome)
        return self._remember(job)

    def get(self, job_id: str) -> Job:
        """The job of that id.

        Raises:
            JobNotFound: naming the ids that exist.
        """
        job = self._jobs.get(job_id)
        if job is None:
            known = near(job_id, list(reversed(self._jobs))[:8]) if self._jobs else "This server has run no job yet."
            raise JobNotFound(f"There is no job {quoted(job_id)} on this server. {known}")
        return job

    def newest_first(self) -> list[Job]:
        """Every job that is remembered."""
        return list(reversed(self._jobs.values()))

    def ahead_of(self, job: Job) -> int:
        """How many jobs come before a waiting one, running ones included."""
        before = self._waiting.index(job) if job in self._waiting else 0
        return before + sum(other.state is State.RUNNING for other in self._jobs.values() if other is not job)

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    @property
    def running(self) -> list[Job]:
        """The jobs that run now."""
        return [job for job in self._jobs.values() if job.state is State.RUNNING]

    def cancel(self, job: Job) -> None:
        """End a job for whoever waits for it; the worker that runs it stops at its next step.

        No effect on one that has ended. When one of a running group is cancelled the group goes on, and what it
        draws for the job is thrown away; the last one stops it.
        """
        if job in self._waiting:
            self._waiting.remove(job)
        job.end(State.CANCELLED)
        if all(other.finished for other in job.group):
            job.scope.cancel()

    async def follow(self, job: Job, seconds: float, tell: Tell | None = None) -> None:
        """Return when the job has ended or `seconds` have passed, whichever comes first.

        `tell` is called after every change and at least once a heartbeat.
        """
        deadline = anyio.current_time() + seconds
        while not job.finished:
            left = deadline - anyio.current_time()
            if left <= 0:
                return
            with anyio.move_on_after(min(left, self._heartbeat)):
                await job.changed.wait()
            if tell is not None and not job.finished:
                await tell(self.progress(job))

    def progress(self, job: Job) -> Progress:
        """The job's progress, with a message that also says what a waiting or silent job is doing."""
        if job.state is State.QUEUED:
            ahead = self.ahead_of(job)
            place = f"waiting: {ahead} job{'s' * (ahead != 1)} ahead" if ahead else "waiting for the worker"
            return Progress(fraction=0.0, message=f"{place} ({time.time() - job.created:.0f} s)")
        message = job.progress.message
        if job.state is State.RUNNING and message == "starting":
            starting = any(worker.phase == "starting" for worker in self.backend.state())
            message = f"{'starting the worker' if starting else 'starting'} ({job.seconds:.0f} s)"
        return job.progress.model_copy(update={"message": message})

    def _remember(self, job: Job) -> Job:
        self._jobs[job.id] = job
        ended = [other.id for other in self._jobs.values() if other.finished]
        for job_id in ended[: max(0, len(ended) - KEPT)]:
            del self._jobs[job_id]
        return job

    async def _warm_up(self) -> None:
        try:
            await self.backend.warm_up()
        except LayerDiffuseError as error:
            logger.warning("the worker could not be started ahead of time: %s", error)
        except Exception:  # the first job meets it again, and says so
            logger.exception("the worker could not be started ahead of time")

    async def _work(self) -> None:
        """Run what waits, for ever: whatever a job holds or meets, the next one has its turn."""
        while True:
            await self._arrivals.acquire()
            if self._waiting:  # not taken by another's group, nor cancelled
                first, *others = self._next()
                await (self._run_group([first, *others]) if others else self._run(first))

    def _next(self) -> list[Job]:
        """Take the first job that waits and others that can share its batch."""
        taken = [self._waiting.popleft()]
        key = taken[0].batch_key
        room = GROUP_RESULTS - _results(taken[0])
        for job in list(self._waiting) if key is not None else ():
            if _results(job) <= room and job.batch_key == key:
                self._waiting.remove(job)
                taken.append(job)
                room -= _results(job)
        return taken

    async def _run_group(self, jobs: list[Job]) -> None:
        """Draw jobs as one batch; if that fails, one after another, so that each meets only its own error."""
        for job in jobs:
            job.begin(jobs)

        def report(progress: Progress) -> None:
            for job in jobs:
                job.report(progress)

        try:
            with jobs[0].scope:
                request = GroupRequest(requests=tuple(cast(GenerateRequest, job.request) for job in jobs))
                outcome = await self.backend.run(request, report)
                for job, part in zip(jobs, outcome.parts, strict=True):
                    if not job.finished:
                        job.group, job.scope = [job], anyio.CancelScope()  # from here on it can be stopped alone
                        await self._save(job, part)
        except Exception:  # of one of them, as a rule; it comes again for that one
            logger.info("a group of %s jobs failed: each runs alone", len(jobs), exc_info=True)
            for job in jobs:
                if not job.finished:
                    await self._run(job)
        finally:
            for job in jobs:
                job.end(State.CANCELLED)

    async def _run(self, job: Job) -> None:
        job.begin()
        assert job.request is not None
        try:
            with job.scope:
                await self._save(job, await self.backend.run(job.request, job.report))
        except LayerDiffuseError as error:
            job.end(State.FAILED, error=error)
        except Exception:  # a bug in the backend must not take the queue with it
            logger.exception("the backend failed unexpectedly")
            job.end(State.FAILED, error=WorkerDied("The backend failed unexpectedly; the server's log says how."))
        finally:
            job.end(State.CANCELLED)

    async def _save(self, job: Job, outcome: Outcome) -> None:
        """Put a job's files on disk, all or none, and end it; cancelled before they appear, it leaves none."""
        scope = job.scope
        try:
            outcome = await anyio.to_thread.run_sync(saved, outcome, self._output, lambda: scope.cancel_called)
        except Cancelled:
            job.end(State.CANCELLED)
        except LayerDiffuseError as error:
            job.end(State.FAILED, error=error)
        else:
            if job.finished:  # cancelled in the moment in which they appeared
                _throw_away(outcome)
            job.end(State.DONE, outcome)


def _nothing() -> None:
    """What is to be done at most jobs' end."""


def _key(request: Request) -> str | None:
    try:
        return batch_key(request)
    except ValueError:  # it holds what no JSON can, a file name that is not UTF-8 for one: it is drawn alone
        return None


def _results(job: Job) -> int:
    return job.request.count if isinstance(job.request, GenerateRequest) else 0


def _throw_away(outcome: Outcome) -> None:
    for path in (*(image.path for image in outcome.images), *outcome.latents):
        with contextlib.suppress(OSError):
            path.unlink()
