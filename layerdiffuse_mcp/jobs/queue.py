"""The queue: every planned request becomes a job, and every job ends as done, failed or cancelled.

    async with Jobs(backend, settings) as jobs:
        job = jobs.submit(planned)                        # of jobs/planner.py
        await jobs.follow(job, seconds=50, report=print)   # or whatever shows progress
        if job.state is State.DONE:
            show(job.outcome.images)

The tasks of all jobs wait together (`dispatcher.py`): a job of eight is done by as many workers as are free. What a
job lacks is downloaded first, beside the queue; its pictures are finished and written beside the workers. A job
outlives the call that submitted it. One that is cancelled has ended at once for whoever waits for it; the workers
that ran it take the next task as soon as they have stopped. Clients that are to know nothing of each other have a
queue each, and share a dispatcher. This module knows no MCP and no model, and its state lives in one event loop:
nothing here is shared with threads.
"""

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial
from types import TracebackType

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.plan import Planned, pixels_of
from layerdiffuse_mcp.backends.backend import Backend
from layerdiffuse_mcp.backends.pictures import PictureRoom
from layerdiffuse_mcp.errors import InvalidRequest, QueueFull, ServerEnding
from layerdiffuse_mcp.jobs import kept
from layerdiffuse_mcp.jobs.book import JobBook
from layerdiffuse_mcp.jobs.completing import Completer
from layerdiffuse_mcp.jobs.dispatcher import Dispatcher
from layerdiffuse_mcp.jobs.downloads import Downloads
from layerdiffuse_mcp.jobs.history import WAITED, JobHistory, interrupted, outlasts
from layerdiffuse_mcp.jobs.job import Job, State
from layerdiffuse_mcp.outputs.index import Index
from layerdiffuse_mcp.outputs.records import JobRecords
from layerdiffuse_mcp.settings import Settings

HEARTBEAT = 3.0
"""Longest silence towards whoever follows a job, in seconds."""

ROOM = "Wait for one with get_job, or cancel one with cancel_job (list_jobs names them)."
"""What to do where no further job may wait."""
UNFINISHED = (State.DOWNLOADING, State.QUEUED, State.RUNNING)

Report = Callable[[Progress], Awaitable[None]]


class Jobs:
    """A bounded queue in front of a backend.

    Args:
        backend: where tasks run; closed with the queue. Or a dispatcher that is shared and is not.
        settings: `queue_size` bounds how many jobs may wait, `queue_pixels` what they draw altogether.
        heartbeat: longest silence of `follow`, in seconds.
        pictures: where pictures are finished before they are written; left out, a room of its own.
    """

    def __init__(
        self,
        backend: Backend | Dispatcher,
        settings: Settings,
        heartbeat: float = HEARTBEAT,
        pictures: PictureRoom | None = None,
    ) -> None:
        self._owned: list[AbstractAsyncContextManager[object]] = []
        if not isinstance(backend, Dispatcher):
            backend = Dispatcher(backend, settings)
            self._owned.append(backend)
        if pictures is None:
            pictures = PictureRoom()
            self._owned.append(pictures)
        self.dispatcher = backend
        self.backend = backend.backend
        self.index = Index(settings)
        self._history = JobHistory(JobRecords(self.index))
        self._resume = settings.resume_jobs is True
        self._completer = Completer(settings, self.index, pictures)
        self._downloads = Downloads(settings, self.backend)
        self.bound(settings)
        self._heartbeat = heartbeat
        self._book = JobBook()
        self._stack = AsyncExitStack()
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> "Jobs":
        self._stack.enter_context(self.index.held())
        for owned in self._owned:
            await self._stack.enter_async_context(owned)
        self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        await self._restore()
        self._book.at_change = self._history.note
        self._tasks.start_soon(self._history.write)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._tasks is not None
        with anyio.CancelScope(shield=True):
            await self._leave()  # as jobs are now the next server finds them
        for job in self._book.newest_first():
            self.cancel(job)
        self._tasks.cancel_scope.cancel()
        return await self._stack.__aexit__(kind, error, trace)

    @property
    def at_end(self) -> Callable[[Job], object] | None:
        """Called with each job that ends."""
        return self._book.at_end

    @at_end.setter
    def at_end(self, call: Callable[[Job], object] | None) -> None:
        self._book.at_end = call

    def warm_up(self) -> None:
        """Start the backend's workers in the background."""
        self.dispatcher.warm_up()

    def bound(self, settings: Settings) -> None:
        """What may wait or run from now on; what does already stays."""
        self._limit, self._pixels = settings.queue_size, settings.queue_pixels

    def submit(
        self,
        planned: Planned,
        what: str | None = None,
        client: str = "",
        key: str | None = None,
        asked: str | None = None,
    ) -> Job:
        """Queue the tasks of a request as one job.

        Args:
            planned: what to do, and with which files.
            what: how lists of jobs call it; the first task's kind when left out.
            client: whose job it is; clients take turns.
            key: by which the caller asks for it again; see `by_key`.
            asked: a digest of what was asked for, to tell another request with the same key.

        Raises:
            ServerEnding: the server is draining.
            QueueFull: as many jobs wait or download as may, or they draw as many pixels.
            InvalidRequest: alone it draws more pixels than may be drawn at once.
        """
        if self.dispatcher.draining:
            raise ServerEnding(
                "The server is about to end: it finishes what runs and takes no new jobs. Call again in a minute."
            )
        if (count := self.waiting + self.count(State.DOWNLOADING)) >= self._limit:
            raise QueueFull(f"{count} jobs wait already, and no more may. {ROOM}")
        if self._pixels is not None:
            self._check_pixels(pixels_of(planned.tasks), self._pixels)
        what = what or next((task.kind for task in planned.tasks), "download")
        return self._begin_job(Job(what, planned, client, self.dispatcher.numbers, key, asked))

    def _check_pixels(self, asked: int, most: int) -> None:
        if asked > most:
            raise InvalidRequest(
                f"This draws {asked:,} pixels, and at most {most:,} may be drawn at once. "
                "Ask for a smaller size, a smaller count or fewer subjects."
            )
        unfinished = (job for state in UNFINISHED for job in self._book.in_state(state))
        if (before := sum(pixels_of(job.tasks) for job in unfinished)) + asked > most:
            raise QueueFull(
                f"Jobs that wait or run draw {before:,} pixels, this one {asked:,}, and {most:,} may be drawn at once. "
                f"{ROOM}"
            )

    def _begin_job(self, job: Job) -> Job:
        """Download what it lacks, or have it wait."""
        assert self._tasks is not None
        self._book.add(job)
        tasks = self._tasks
        job.at_drawn = lambda: tasks.start_soon(self._completer.complete, job)
        job.at_end.append(lambda: self.dispatcher.remove(job))
        expected = self.dispatcher.paces.seconds(job.tasks, self.dispatcher.device)
        job.expected = expected and expected / min(self.backend.workers, len(job.tasks))
        if job.downloads:
            job.download()
            self._tasks.start_soon(self._fetch, job)
        else:
            self.dispatcher.add(job.parts)
        return job

    def record(self, what: str, outcome: Outcome) -> Job:
        """Remember work that was done without a worker, so that its pictures have a name too."""
        job = Job(what, Planned(()))
        job.started = job.created
        job.end(State.DONE, outcome)
        return self._book.add(job)

    def get(self, job_id: str) -> Job:
        """The job of that id.

        Raises:
            JobNotFound: naming the ids that exist.
        """
        return self._book.get(job_id)

    def by_key(self, key: str | None) -> Job | None:
        """The job that was asked for with a key within a day, unless it ended without a result."""
        return self._book.by_key(key)

    def newest_first(self) -> list[Job]:
        """Every job that is remembered."""
        return self._book.newest_first()

    def ahead_of(self, job: Job) -> int:
        """How many jobs come before a waiting one, running ones included."""
        return self.dispatcher.ahead_of(job)

    def count(self, state: State) -> int:
        """How many jobs are in a state."""
        return len(self._book.in_state(state))

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return self.count(State.QUEUED)

    @property
    def running(self) -> list[Job]:
        """The jobs that run now."""
        return list(self._book.in_state(State.RUNNING))

    @property
    def downloading(self) -> int:
        """How many downloads are under way, those of cancelled jobs that are about to stop included."""
        return self._downloads.under_way

    def cancel(self, job: Job) -> None:
        """End a job for whoever waits for it; the workers that run it stop at their next step, its download soon.

        No effect on one that has ended. When one of a batch is cancelled the batch goes on, and what it draws for the
        job is thrown away; the last one stops it.
        """
        if not job.finished:
            job.end(State.CANCELLED)
            job.scope.cancel()

    async def drain(self, seconds: float) -> None:
        """Prepare for the end: no new job is taken and none is begun; those that run may go on for so long.

        What waits is as it was for the next server, and whoever follows it is told at once; what still runs then is
        interrupted. From then on nothing is written down any more.
        """
        self.dispatcher.drain()
        for job in [job for state in WAITED for job in self._book.in_state(state)]:
            job.announce()
        with anyio.move_on_after(seconds):
            for job in self.running:
                await self.follow(job, seconds)
        for job in self.running:
            job.end(State.INTERRUPTED, error=interrupted(State.RUNNING))
            job.scope.cancel()
        await self._leave()

    async def follow(self, job: Job, seconds: float, report: Report | None = None) -> None:
        """Return when the job has ended or `seconds` have passed, whichever comes first; at once if it is left to the
        next server.

        `report` is called after every change and at least once a heartbeat.
        """
        deadline = anyio.current_time() + seconds
        while not (job.finished or self._is_left(job)):
            left = deadline - anyio.current_time()
            if left <= 0:
                return
            with anyio.move_on_after(min(left, self._heartbeat)):
                await job.changed.wait()
            if report is not None and not job.finished:
                await report(self.progress(job))

    def progress(self, job: Job) -> Progress:
        """The job's progress, with a message that also says what a waiting or silent job is doing."""
        if self._is_left(job):
            whose = "the next one does this job" if self._resume and outlasts(job) else "this job ends with it"
            return job.progress.model_copy(update={"message": f"the server is about to end: {whose}"})
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

    def _is_left(self, job: Job) -> bool:
        """Whether it waits, and this server does not begin it any more."""
        return self.dispatcher.draining and job.state in WAITED

    async def _leave(self) -> None:
        """Have the next server find jobs as they are, with the pictures that those start from which wait."""
        waiting = [job for state in WAITED for job in self._book.in_state(state) if job.inputs]
        if waiting and self._resume:
            await anyio.to_thread.run_sync(kept.keep, waiting)
        await self._history.close()

    async def _restore(self) -> None:
        """Take over the jobs of servers that are gone; such as waited wait again if the settings want that."""
        await anyio.to_thread.run_sync(kept.sweep)
        for job in await self._history.restored(self.dispatcher.numbers, resume=self._resume):
            if job.finished:
                self._book.add(job)
            else:
                job.at_end.append(partial(self._forget, job))
                self._begin_job(job)

    def _forget(self, job: Job) -> None:
        if not self._history.closed:
            kept.forget(job.id)

    async def _fetch(self, job: Job) -> None:
        """Download what a job lacks; it waits for a worker then, unless it has ended."""
        await self._downloads.fetch(job)
        if not job.finished:
            job.wait()
            self.dispatcher.add(job.parts)
