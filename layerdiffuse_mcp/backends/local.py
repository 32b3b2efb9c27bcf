"""The default backend: one worker process on this machine.

The process is spawned on the first request (or by `warm_up`), is the only one that
imports torch, and keeps its models between requests. When it is killed or crashes,
the request that it ran fails with `WorkerDied` and the next one gets a new process.
"""

import contextlib
import itertools
import logging
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from layerdiffuse_mcp.backends import Report, WorkerState
from layerdiffuse_mcp.errors import LayerDiffuseError, WorkerDied
from layerdiffuse_mcp.outcome import Outcome
from layerdiffuse_mcp.requests import Request
from layerdiffuse_mcp.runtime import ENGINE
from layerdiffuse_mcp.settings import Settings

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

POLL = 0.02
"""Seconds between looks at the pipe; polling works alike for every platform's pipes."""
CANCEL_GRACE = 20.0
"""Seconds a cancelled request gets to reach its next step before its process is killed."""
EXIT_GRACE = 1.0
"""Seconds a worker gets to end by itself when the server closes."""

logger = logging.getLogger(__name__)


@dataclass
class _Process:
    """A living worker: its process, our end of the pipe and what it has told us."""

    process: "BaseProcess"
    connection: "Connection[Any, Any]"
    ready: bool = False
    running: int | None = None
    engine: dict[str, Any] = field(default_factory=lambda: dict[str, Any]())


class LocalBackend:
    """Runs requests one after another in a process of their own.

    Args:
        settings: handed to the worker.
        engine: the class that the worker runs, as `module:name`.
        cancel_grace: seconds a cancelled request gets to reach its next step.
    """

    def __init__(self, settings: Settings, engine: str = ENGINE, cancel_grace: float = CANCEL_GRACE) -> None:
        self._settings = settings
        self._engine = engine
        self._cancel_grace = cancel_grace
        self._current: _Process | None = None
        self._starting = anyio.Lock()
        self._turn = anyio.Lock()
        self._numbers = itertools.count(1)
        self._closed = False

    @property
    def workers(self) -> int:
        """One process, one request at a time."""
        return 1

    async def warm_up(self) -> None:
        """Start the worker; it imports torch while the server goes on."""
        await self._living()

    async def run(self, request: Request, report: Report) -> Outcome:
        """Run one request; see `Backend.run`."""
        async with self._turn:
            number = next(self._numbers)
            worker = await self._hand_over(number, request)
            worker.running = number
            try:
                return await self._follow(worker, number, report)
            except anyio.get_cancelled_exc_class():
                with anyio.CancelScope(shield=True):
                    await self._stop(worker, number)
                raise
            finally:
                worker.running = None

    def state(self) -> list[WorkerState]:
        """The worker's phase, process id and last report."""
        worker = self._current
        if worker is not None and worker.running is None:
            self._catch_up(worker)
            worker = self._current
        if worker is None:
            return [WorkerState("stopped", None, {})]
        phase = "starting" if not worker.ready else "ready" if worker.running is None else "busy"
        return [WorkerState(phase, worker.process.pid, worker.engine)]

    async def close(self) -> None:
        """End the worker; a request that still runs is given up."""
        self._closed = True
        with anyio.CancelScope(shield=True):
            async with self._starting:  # a worker that is being spawned has to be known before it can be ended
                worker, self._current = self._current, None
            if worker is not None:
                worker.connection.close()
                if worker.ready:  # one that still imports has nothing to put away
                    await anyio.to_thread.run_sync(worker.process.join, EXIT_GRACE)
                await self._kill(worker)

    async def _living(self) -> _Process:
        async with self._starting:
            if self._closed:
                raise WorkerDied("The server is closing.")
            if self._current is not None:
                self._catch_up(self._current)
            if self._current is None:
                with anyio.CancelScope(shield=True):  # nobody could end a process that was spawned and forgotten
                    self._current = await anyio.to_thread.run_sync(self._spawn)
            assert self._current is not None
            return self._current

    def _spawn(self) -> _Process:
        import multiprocessing  # not needed to answer a client's first questions

        from layerdiffuse_mcp.backends import worker

        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=worker.main, args=(theirs, self._settings, self._engine), name="layerdiffuse-worker", daemon=True
        )
        process.start()
        theirs.close()
        return _Process(process, ours)

    async def _hand_over(self, number: int, request: Request) -> _Process:
        from layerdiffuse_mcp.backends.worker import Run

        for _ in range(2):  # a worker that died while it was idle costs nobody a request
            worker = await self._living()
            try:
                worker.connection.send(Run(number, request))
                return worker
            except OSError:
                self._drop(worker)
        raise WorkerDied("The worker process ends as soon as it starts; its log is on the server's stderr.")

    def _catch_up(self, worker: _Process) -> None:
        """Hear what an idle worker said since; forget it if it has ended."""
        try:
            while worker.connection.poll():
                self._note(worker, worker.connection.recv())
        except (EOFError, OSError):
            self._drop(worker)

    async def _follow(self, worker: _Process, number: int, report: Report) -> Outcome:
        from layerdiffuse_mcp.backends.worker import Broken, Done, Failed, Step

        while True:
            message = await self._receive(worker)
            self._note(worker, message)
            match message:
                case Step(n, progress) if n == number:
                    report(progress)
                case Done(n, outcome) if n == number:
                    return outcome
                case Failed(n, error) if n == number:
                    raise error
                case Broken(reason):
                    self._drop(worker)
                    raise LayerDiffuseError(f"The engine could not be loaded: {reason}")
                case _:
                    pass

    def _note(self, worker: _Process, message: object) -> None:
        from layerdiffuse_mcp.backends.worker import Ready, State

        match message:
            case Ready():
                worker.ready = True
            case State(engine):
                worker.engine = engine
            case _:
                pass

    async def _receive(self, worker: _Process) -> object:
        try:
            while not worker.connection.poll():
                await anyio.sleep(POLL)
            return worker.connection.recv()
        except (EOFError, OSError):
            self._drop(worker)
            await anyio.to_thread.run_sync(worker.process.join, EXIT_GRACE)
            await self._kill(worker)
            raise WorkerDied(_obituary(worker.process.exitcode)) from None

    async def _stop(self, worker: _Process, number: int) -> None:
        from layerdiffuse_mcp.backends.worker import Cancel

        try:
            worker.connection.send(Cancel(number))
        except OSError:
            return
        if not worker.ready:
            return  # it will skip the request once it has started
        if self._closed:
            return
        with anyio.move_on_after(self._cancel_grace):
            with contextlib.suppress(LayerDiffuseError):
                await self._follow(worker, number, lambda _: None)
            return
        logger.warning("a cancelled request did not stop within %s s: its worker is killed", self._cancel_grace)
        self._drop(worker)
        await self._kill(worker)

    def _drop(self, worker: _Process) -> None:
        if self._current is worker:
            self._current = None

    async def _kill(self, worker: _Process) -> None:
        if worker.process.is_alive():
            worker.process.kill()
            await anyio.to_thread.run_sync(worker.process.join, EXIT_GRACE)


def _obituary(exitcode: int | None) -> str:
    how = f"with exit code {exitcode}"
    if exitcode is not None and exitcode < 0:
        how = f"by signal {signal.Signals(-exitcode).name}"
    hint = " The system may have run out of memory: ask for a smaller size or count." if exitcode == -9 else ""
    return f"The worker process ended {how} while it ran this job.{hint} The next job gets a new worker."
