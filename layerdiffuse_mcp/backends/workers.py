"""The workers of a backend: each does one task at a time, in a process that is replaced when it has ended.

    class Mine(Workers): ...        # a backend, given its workers
    worker = Worker(0, start)       # `start` makes a process.WorkerProcess

A process that is killed or crashes costs the task that it ran, which fails with `WorkerDied`; the next one gets a new
process. One that ends by itself, for it is no longer fit to draw, is replaced without a word.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

import anyio

from layerdiffuse_mcp.api.outcome import Outcome
from layerdiffuse_mcp.api.plan import Download, Inputs, Task
from layerdiffuse_mcp.backends.backend import Report, WorkerState
from layerdiffuse_mcp.backends.messages import Run
from layerdiffuse_mcp.backends.process import EXIT_GRACE, Work, WorkerProcess, ignore
from layerdiffuse_mcp.errors import WorkerDied

Start = Callable[[], Awaitable[WorkerProcess]]
CANCEL_GRACE = 20.0
"""Seconds a cancelled request gets to reach its next step before its process is killed."""
ATTEMPTS = 2
"""Processes that a task is handed to before it is given up, none of which began it."""

logger = logging.getLogger(__name__)


class Workers:
    """A backend that is its workers: it keeps to `backend.Backend`."""

    def __init__(self, workers: Iterable["Worker"] = ()) -> None:
        self._workers = {worker.number: worker for worker in workers}

    @property
    def workers(self) -> int:
        """How many tasks may run at once."""
        return len(self._workers)

    async def warm_up(self) -> None:
        """Start all workers; they import torch while the server goes on."""
        for worker in list(self._workers.values()):
            await worker.living()

    async def run(self, task: Task, inputs: Inputs, report: Report, worker: int | None = None) -> Outcome:
        """Run one task; see `Backend.run`."""
        known = list(self._workers.values())
        free = (worker for worker in known if not worker.occupied)
        chosen = next(free, known[0]) if worker is None else self._workers[worker]
        return await chosen.run(task, inputs, report)

    async def prepare(self, downloads: Sequence[Download], report: Report) -> None:
        """They share the files of this machine; see `Backend.prepare`."""

    async def unload(self, model: str | None = None) -> list[str]:
        """Drop a model, or all, ahead of whatever waits; see `Backend.unload`. It starts no worker."""
        dropped: dict[str, None] = {}

        async def unload(worker: Worker) -> None:
            dropped.update(dict.fromkeys(await worker.unload(model)))

        async with anyio.create_task_group() as tasks:
            for worker in self._workers.values():
                tasks.start_soon(unload, worker)
        return list(dropped)

    def state(self) -> list[WorkerState]:
        """Each worker's phase, process id and last report."""
        return [worker.state() for worker in self._workers.values()]

    async def close(self) -> None:
        """End all workers at once; tasks that still run are given up."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                for worker in self._workers.values():
                    tasks.start_soon(worker.close)


class Worker:
    """One of the workers: a process at a time, replaced when it has ended.

    Args:
        number: what it is known by.
        start: starts a process for it.
        cancel_grace: seconds a cancelled request gets to reach its next step.
    """

    def __init__(self, number: int, start: Start, cancel_grace: float = CANCEL_GRACE) -> None:
        self.number = number
        self._start = start
        self._cancel_grace = cancel_grace
        self._current: WorkerProcess | None = None
        self._starting = anyio.Lock()
        self._turn = anyio.Lock()
        self._closed = False

    @property
    def occupied(self) -> bool:
        """Whether it runs a task, or is about to."""
        return self._turn.locked()

    async def run(self, task: Task, inputs: Inputs, report: Report) -> Outcome:
        """Run one task after what it does now; see `Backend.run`."""
        async with self._turn:
            log = ""
            for _ in range(ATTEMPTS):
                process = await self.living()
                log = process.log
                outcome = await self._done(process, lambda number: Run(number, task, inputs), report)
                if outcome is not None:
                    return outcome
            raise WorkerDied(f"The worker process ends as soon as it starts; its log is {log}.")

    async def unload(self, model: str | None) -> list[str]:
        """Drop a model, or all, after what it does now; it starts no process."""
        from layerdiffuse_mcp.backends.messages import Unload

        async with self._turn:
            process = self._current
            if process is None or not process.usable or not process.ready:
                return []
            outcome = await self._done(process, lambda number: Unload(number, model), ignore)
            return list(outcome.status["unloaded"]) if outcome and outcome.status else []

    def state(self) -> WorkerState:
        """What is known of it."""
        process = self._current
        if process is None or not process.usable:
            return WorkerState("stopped", None, {}, self.number, failed=process is not None and not process.ready)
        return WorkerState(process.phase, process.process.pid, process.engine, self.number)

    async def close(self) -> None:
        """End its process at once, for good."""
        self._closed = True
        async with self._starting:  # a process that is being spawned has to be known before it can be ended
            process = self._current
        if process is None:
            return
        if process.ready:  # one that still imports has nothing to put away
            if process.task is not None:
                process.cancel(process.task)
            process.end()
            with anyio.move_on_after(EXIT_GRACE):
                await process.gone.wait()
        await process.left()

    async def living(self) -> WorkerProcess:
        """Its process, started if there is none that takes tasks."""
        async with self._starting:
            if self._closed:
                raise WorkerDied("The server is closing.")
            if self._current is None or not self._current.usable:
                with anyio.CancelScope(shield=True):  # nobody could end a process that was spawned and forgotten
                    if self._current is not None:  # two would share the device's memory
                        await self._current.killed()
                    self._current = await self._start()
            assert self._current is not None
            return self._current

    async def _done(self, process: WorkerProcess, command: Callable[[int], object], report: Report) -> Outcome | None:
        """What came of a command, made of its number; None if the process ended without having begun it."""
        work = process.hand_over(command, report)
        try:
            await work.over.wait()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._stop(process, work)
            raise
        if work.error is not None:
            raise work.error
        return work.outcome

    async def _stop(self, process: WorkerProcess, work: Work) -> None:
        process.cancel(work)
        if not process.ready or self._closed:
            return  # it will skip the task once it has started, or is ended by `close`
        with anyio.move_on_after(self._cancel_grace):
            await work.over.wait()
            return
        logger.warning("a cancelled request did not stop within %s s: its worker is killed", self._cancel_grace)
        await process.killed()
