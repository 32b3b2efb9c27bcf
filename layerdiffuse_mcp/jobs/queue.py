"""The queue: every planned request becomes a job, and every job ends as done, failed or cancelled.

    async with Jobs(backend, settings) as jobs:
        job = jobs.submit(planned)                        # of jobs/planner.py
        await jobs.follow(job, seconds=50, report=print)   # or whatever shows progress
        if job.state is State.DONE:
            show(job.outcome.images)

Jobs run in the order in which they came, one a worker; or with `group_jobs` a job together
with those waiting that can share its batch. What a job lacks is downloaded first, beside the
queue: it waits for a worker once its files are here. A job outlives the call that submitted it. One
that is cancelled has ended at once for whoever waits for it; the worker that ran it takes the
next one as soon as it has stopped. This module knows no MCP and no model, and its state lives
in one event loop: nothing here is shared with threads.
"""

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from layerdiffuse_mcp.api.fields import near
from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.plan import DrawPlan, Planned, Task
from layerdiffuse_mcp.backends.backend import Backend
from layerdiffuse_mcp.backends.pictures import PictureRoom
from layerdiffuse_mcp.errors import JobNotFound, LayerDiffuseError, QueueFull
from layerdiffuse_mcp.jobs.downloads import Downloads
from layerdiffuse_mcp.jobs.job import Job, State
from layerdiffuse_mcp.jobs.pace import Paces
from layerdiffuse_mcp.jobs.running import Runner
from layerdiffuse_mcp.outputs.index import Index
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import quoted

HEARTBEAT = 3.0
"""Longest silence towards whoever follows a job, in seconds."""
KEPT = 200
"""Finished jobs that are remembered; their pictures stay on disk for ever."""
GROUP_RESULTS = 8
"""Most results that are drawn as one group."""

logger = logging.getLogger(__name__)

Report = Callable[[Progress], Awaitable[None]]


class Jobs:
    """A bounded queue in front of a backend.

    Args:
        backend: where requests run; closed with the queue.
        settings: `queue_size` bounds how many jobs may wait.
        heartbeat: longest silence of `follow`, in seconds.
        pictures: where pictures are finished before they are written; left out, a room of its own.
    """

    def __init__(
        self,
        backend: Backend,
        settings: Settings,
        heartbeat: float = HEARTBEAT,
        pictures: PictureRoom | None = None,
    ) -> None:
        self.backend = backend
        self._pictures = pictures or PictureRoom()
        self.index = Index(settings)
        self.paces = Paces()
        self._runner = Runner(backend, settings, self.index, self._pictures, self._learn)
        self._downloads = Downloads(settings)
        self._limit = settings.queue_size
        self._grouping = settings.group_jobs
        self._heartbeat = heartbeat
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._arrivals = anyio.Semaphore(0)
        self._tasks: TaskGroup | None = None
        self.at_end: Callable[[Job], object] | None = None
        """Called with each job that ends."""

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
        await self._pictures.close()
        self._tasks.cancel_scope.cancel()
        return await self._tasks.__aexit__(kind, error, trace)

    def warm_up(self) -> None:
        """Start the backend's workers in the background."""
        assert self._tasks is not None
        self._tasks.start_soon(self._warm_up)

    def submit(self, planned: Planned, what: str | None = None) -> Job:
        """Queue the tasks of a request as one job.

        Args:
            planned: what to do, and with which files.
            what: how lists of jobs call it; the first task's kind when left out.

        Raises:
            QueueFull: as many jobs wait or download as may.
        """
        assert self._tasks is not None
        if (count := len(self._waiting) + len(self._in(State.DOWNLOADING))) >= self._limit:
            raise QueueFull(
                f"{count} jobs wait already, and no more may. "
                "Wait for one with get_job, or cancel one with cancel_job (list_jobs names them)."
            )
        job = self._remember(Job(what or next((task.kind for task in planned.tasks), "download"), planned))
        job.expected = self.paces.seconds(job.tasks, self._device())
        if job.downloads:
            job.download()
            self._tasks.start_soon(self._fetch, job)
        else:
            self._enqueue(job)
        return job

    def record(self, what: str, outcome: Outcome) -> Job:
        """Remember work that was done without a worker, so that its pictures have a name too."""
        job = Job(what, Planned(()))
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
        return before + sum(other is not job for other in self.running)

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    @property
    def running(self) -> list[Job]:
        """The jobs that run now."""
        return self._in(State.RUNNING)

    def _in(self, state: State) -> list[Job]:
        return [job for job in self._jobs.values() if job.state is state]

    @property
    def downloading(self) -> int:
        """How many downloads are under way, those of cancelled jobs that are about to stop included."""
        return self._downloads.under_way

    def cancel(self, job: Job) -> None:
        """End a job for whoever waits for it; the worker that runs it stops at its next step, its download soon.

        No effect on one that has ended. When one of a running group is cancelled the group goes on, and what it
        draws for the job is thrown away; the last one stops it.
        """
        if job in self._waiting:
            self._waiting.remove(job)
        job.end(State.CANCELLED)
        if all(other.finished for other in job.group):
            job.scope.cancel()

    async def follow(self, job: Job, seconds: float, report: Report | None = None) -> None:
        """Return when the job has ended or `seconds` have passed, whichever comes first.

        `report` is called after every change and at least once a heartbeat.
        """
        deadline = anyio.current_time() + seconds
        while not job.finished:
            left = deadline - anyio.current_time()
            if left <= 0:
                return
            with anyio.move_on_after(min(left, self._heartbeat)):
                await job.changed.wait()
            if report is not None and not job.finished:
                await report(self.progress(job))

    def progress(self, job: Job) -> Progress:
        """The job's progress, with a message that also says what a waiting or silent job is doing."""
        if job.state is State.QUEUED:
            ahead = self.ahead_of(job)
            place = f"waiting: {ahead} job{'s' * (ahead != 1)} ahead" if ahead else "waiting for the worker"
            return Progress(fraction=0.0, message=f"{place} ({time.monotonic() - job.created:.0f} s)")
        message = job.progress.message
        if len(job.tasks) > 1 and job.seconds_left is not None:
            message += f", about {job.seconds_left:.0f} s left"
        if job.state is State.RUNNING and message == "starting":
            starting = any(worker.phase == "starting" for worker in self.backend.state())
            message = f"{'starting the worker' if starting else 'starting'} ({job.seconds:.0f} s)"
        return job.progress.model_copy(update={"message": message})

    def _enqueue(self, job: Job) -> None:
        self._waiting.append(job)
        self._arrivals.release()

    def _remember(self, job: Job) -> Job:
        self._jobs[job.id] = job
        if (at_end := self.at_end) is not None:
            if job.finished:
                at_end(job)
            else:
                job.at_end.append(lambda: at_end(job))
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
            if self._waiting:  # not jobs by another's group, nor cancelled
                first, *others = self._next()
                await (self._runner.run_group([first, *others]) if others else self._runner.run(first))

    def _next(self) -> list[Job]:
        """Take the first job that waits and others that can share its batch."""
        jobs = [self._waiting.popleft()]
        key = jobs[0].batch_key if self._grouping else None
        room = GROUP_RESULTS - _results(jobs[0])
        for job in list(self._waiting) if key is not None else ():
            if _results(job) <= room and job.batch_key == key:
                self._waiting.remove(job)
                jobs.append(job)
                room -= _results(job)
        return jobs

    async def _fetch(self, job: Job) -> None:
        """Download what a job lacks; it waits for a worker then, unless it has ended."""
        await self._downloads.fetch(job)
        if not job.finished:
            job.wait()
            self._enqueue(job)

    def _device(self) -> str | None:
        """What the workers run on, as soon as one has told."""
        return next((state.engine["device"] for state in self.backend.state() if "device" in state.engine), None)

    def _learn(self, tasks: Sequence[Task], outcomes: Sequence[Outcome]) -> None:
        """Keep how long tasks took, beside whatever comes next."""
        assert self._tasks is not None
        for task, outcome in zip(tasks, outcomes, strict=False):
            self._tasks.start_soon(anyio.to_thread.run_sync, self.paces.learn, task, outcome)


def _results(job: Job) -> int:
    return sum(task.count for task in job.tasks if isinstance(task, DrawPlan))
