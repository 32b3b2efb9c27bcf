"""Gives idle workers what waits: the tasks of all jobs, whoever's they are.

    async with Dispatcher(backend, settings) as dispatcher:
        dispatcher.add(job.parts)       # each is drawn; `job.at_drawn` is called once all have an outcome
        dispatcher.remove(job)          # it has ended: nothing more is begun for it

`schedule.py` says which task an idle worker does next; tasks that can share a batch are drawn as one where that pays.
Several queues (`queue.py`) may share one: it knows whose job is whose by `Job.client` alone. Its state lives in one
event loop.
"""

import itertools
import logging
import math
import time
from collections.abc import Collection
from types import TracebackType

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from layerdiffuse_mcp.api.outcome import Outcome
from layerdiffuse_mcp.api.plan import DrawPlan, GroupPlan, PreparePlan, Task, batch_key
from layerdiffuse_mcp.backends.backend import Backend
from layerdiffuse_mcp.errors import LayerDiffuseError
from layerdiffuse_mcp.families.registry import EMBEDDED, FAMILIES, METHODS
from layerdiffuse_mcp.jobs.job import Batch, Job, Part, State
from layerdiffuse_mcp.jobs.pace import Paces
from layerdiffuse_mcp.jobs.running import Runner
from layerdiffuse_mcp.jobs.schedule import Idle, Schedule, Waiting
from layerdiffuse_mcp.settings import Settings

GROUP_RESULTS = 8
"""Most results that are drawn as one batch, whatever the family allows."""
LOOK_AGAIN = 2.0
"""Seconds between two looks for workers, while something waits."""
GAINING = frozenset(entry.name for entry in EMBEDDED if entry.batches_pay)
"""Models whose batches were measured to take less time than their pictures one after another."""

logger = logging.getLogger(__name__)


class Dispatcher:
    """Between the jobs and a backend's workers.

    Args:
        backend: where tasks run; closed with this.
        settings: `group_jobs` says what is drawn as one batch.

    `numbers` are those of jobs and their tasks, in the order of their arrival.
    """

    def __init__(self, backend: Backend, settings: Settings) -> None:
        self.backend = backend
        self.paces = Paces()
        self.numbers = itertools.count(1)
        self.draining = False
        self._grouping = settings.group_jobs
        self._runner = Runner(backend, self._learn)
        self._schedule = Schedule()
        self._parts: dict[int, Part] = {}
        """The tasks that wait, by their numbers in the schedule."""
        self._begun: set[Job] = set()
        self._busy: set[int] = set()
        self._wake = anyio.Event()
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> "Dispatcher":
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._give_out)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._tasks is not None
        await self.backend.close()
        self._tasks.cancel_scope.cancel()
        return await self._tasks.__aexit__(kind, error, trace)

    def warm_up(self) -> None:
        """Start the backend's workers in the background."""
        assert self._tasks is not None
        self._tasks.start_soon(self._warm_up)

    def add(self, parts: Collection[Part], *, alone: bool = False) -> None:
        """Have tasks wait for a worker; those that come again have the number that they had."""
        for part in parts:
            if self.draining and part.job.state is not State.RUNNING:
                continue
            waiting = self._waiting(part, alone=alone)
            self._parts[waiting.number] = part
            self._schedule.add(waiting)
        self._wake.set()

    def remove(self, job: Job) -> None:
        """Of a job that has ended nothing more is begun, and what workers do for it alone stops."""
        self._begun.discard(job)
        self._forget(job.parts)
        for batch in job.batches:
            if all(part.job.finished for part in batch.parts):
                batch.scope.cancel()

    def drain(self) -> None:
        """Begin no further job; those that run go on with the rest of their tasks."""
        self.draining = True
        self._forget([part for part in self._parts.values() if part.job.state is not State.RUNNING])

    def ahead_of(self, job: Job) -> int:
        """How many jobs come before a waiting one, running ones included."""
        waits = job.state is State.QUEUED and not self.draining
        return (self._schedule.ahead(job.number, job.client) if waits else 0) + len(self._begun - {job})

    @property
    def waiting(self) -> int:
        """How many tasks wait."""
        return len(self._schedule)

    @property
    def device(self) -> str | None:
        """What the workers run on, as soon as one has told."""
        return next((state.engine["device"] for state in self.backend.state() if "device" in state.engine), None)

    def _forget(self, parts: Collection[Part]) -> None:
        for part in parts:
            if self._parts.pop(part.number, None):
                self._schedule.remove(part.number)

    def _waiting(self, part: Part, *, alone: bool) -> Waiting:
        """A task as the schedule sees it."""
        task, job = part.task, part.job
        key, results, together = None, 1, 1
        methods = task.methods if isinstance(task, DrawPlan | PreparePlan) else ()
        if isinstance(task, DrawPlan):
            results, together = task.count, min(GROUP_RESULTS, FAMILIES[task.family].batch_limit)
            gains = task.model in GAINING if self._grouping == "auto" else self._grouping
            key = batch_key(task) if gains and not alone else None
        layers = frozenset(METHODS[method].file for method in methods)
        assert not isinstance(task, GroupPlan)
        return Waiting(part.number, job.number, job.client, task.model, layers, key, results, together)

    async def _warm_up(self) -> None:
        try:
            await self.backend.warm_up()
        except LayerDiffuseError as error:
            logger.warning("the worker could not be started ahead of time: %s", error)
        except Exception:  # the first job meets it again, and says so
            logger.exception("the worker could not be started ahead of time")

    async def _give_out(self) -> None:
        """Give idle workers what waits, for ever."""
        while True:
            with anyio.move_on_after(LOOK_AGAIN if self._schedule else math.inf):  # workers may come by themselves
                await self._wake.wait()
            self._wake = anyio.Event()
            for elsewhere in (False, True):  # one that is about another server's task does ours after that
                idle = [
                    Idle(worker.worker, worker.models, worker.phase != "stopped")
                    for worker in self.backend.state()
                    if worker.worker not in self._busy and (worker.phase == "busy") == elsewhere
                ]
                while given := self._schedule.next(idle, time.monotonic()):
                    idle = [worker for worker in idle if worker.worker != given.worker]
                    batch = Batch(given.worker, tuple(self._parts.pop(task.number) for task in given.tasks))
                    self._begin(batch)

    def _begin(self, batch: Batch) -> None:
        assert self._tasks is not None
        self._busy.add(batch.worker)
        self._begun.update(batch.jobs)
        for job in batch.jobs:
            job.begin(batch)
        self._tasks.start_soon(self._run, batch)

    async def _run(self, batch: Batch) -> None:
        """Whatever a batch holds or meets, its worker takes the next one."""
        try:
            self.add(await self._runner.draw(batch), alone=True)
        finally:
            self._busy.discard(batch.worker)
            self._wake.set()
        for job in batch.jobs:
            if len(job.outcomes) == len(job.tasks):
                job.at_drawn()

    def _learn(self, task: Task, outcome: Outcome) -> None:
        """Keep how long a task took, beside whatever comes next."""
        assert self._tasks is not None
        self._tasks.start_soon(anyio.to_thread.run_sync, self.paces.learn, task, outcome)
