"""The default backend: one worker process on this machine.

The process is spawned on the first request (or by `warm_up`), is the only one that
imports torch, and keeps its models between requests. When it is killed or crashes,
the request that it ran fails with `WorkerDied` and the next one gets a new process.
One that ends by itself, for it is no longer fit to draw, is replaced without a word.

Two threads a process speak and listen, so that no full or silent pipe holds up the event
loop: all that happens there is that messages arrive.
"""

import asyncio
import contextlib
import itertools
import logging
import queue
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.plan import Inputs, Task
from layerdiffuse_mcp.backends.backend import Phase, Report, WorkerState
from layerdiffuse_mcp.engine.startup import ENGINE
from layerdiffuse_mcp.errors import LayerDiffuseError, WorkerDied
from layerdiffuse_mcp.settings import Settings

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

CANCEL_GRACE = 20.0
"""Seconds a cancelled request gets to reach its next step before its process is killed."""
EXIT_GRACE = 1.0
"""Seconds a worker gets to end by itself when the server closes, or once it has closed its pipe."""
ATTEMPTS = 2
"""Workers that a request is handed to before it is given up, none of which began it."""

logger = logging.getLogger(__name__)


def _ignore(_: Progress) -> None:
    return None


@dataclass
class _Task:
    """A request that a worker has been given. One that is over has an outcome or an error, or was never begun."""

    number: int
    report: Report
    over: anyio.Event = field(default_factory=anyio.Event)
    outcome: Outcome | None = None
    error: LayerDiffuseError | None = None
    begun: bool = False


class _Worker:
    """A worker process and the two threads that speak and listen to it.

    Its state is read and changed in the event loop only. `gone` is set once the process has
    ended and been reaped, and nothing of it is left.
    """

    def __init__(self, process: "BaseProcess", connection: "Connection[Any, Any]") -> None:
        self.process, self.connection = process, connection
        self.task: _Task | None = None
        self.ready = False
        self.broken: str | None = None
        self.engine: dict[str, Any] = {}
        self.gone = anyio.Event()
        self._loop = asyncio.get_running_loop()
        self._outbox: queue.SimpleQueue[object | None] = queue.SimpleQueue()
        self._speaker = threading.Thread(target=self._speak, name="speak to worker", daemon=True)
        self._listener = threading.Thread(target=self._listen, name="listen to worker", daemon=True)
        self._speaker.start()
        self._listener.start()

    @property
    def usable(self) -> bool:
        """Whether it takes requests, now or once it has started."""
        return self.broken is None and not self.gone.is_set()

    @property
    def phase(self) -> Phase:
        """What it does now."""
        return "starting" if not self.ready else "ready" if self.task is None else "busy"

    def hand_over(self, task: _Task, command: object) -> None:
        """Give it a command of the task's number."""
        self.task = task
        self._outbox.put(command)

    def cancel(self, task: _Task) -> None:
        """Ask it to stop a request, of which nothing more is reported."""
        from layerdiffuse_mcp.backends.messages import Cancel

        task.report = _ignore
        self._outbox.put(Cancel(task.number))

    def end(self) -> None:
        """Ask it to end after what it does now."""
        from layerdiffuse_mcp.backends.worker import End

        self._outbox.put(End())

    async def killed(self) -> None:
        """End it at once, if it has not ended yet; returns when nothing of it is left."""
        if not self.gone.is_set():
            self.process.kill()
        await self.gone.wait()
        await anyio.to_thread.run_sync(self._listener.join)

    def _speak(self) -> None:
        try:
            while (message := self._outbox.get()) is not None:
                self.connection.send(message)
        except OSError:  # it has ended: the listener hears that too
            pass
        except Exception:
            logger.exception("a worker could not be told what to do: it is killed")
            self.process.kill()

    def _listen(self) -> None:
        """Hand on what it says until it ends; the only place that reaps the process."""
        try:
            while True:
                self._in_loop(self._hear, self.connection.recv())
        except (EOFError, OSError):
            pass
        except Exception:
            logger.exception("a worker said what cannot be understood: it is killed")
            self.process.kill()
        self.process.join(EXIT_GRACE)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self._outbox.put(None)
        self._speaker.join()
        self.connection.close()
        self._in_loop(self._has_ended)

    def _in_loop(self, function: Callable[..., None], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
            self._loop.call_soon_threadsafe(function, *arguments)

    def _hear(self, message: object) -> None:
        from layerdiffuse_mcp.backends.messages import Broken, Done, Failed, Ready, State, Step
        from layerdiffuse_mcp.backends.worker import Begun

        task = self.task
        match message:
            case Ready():
                self.ready = True
            case State(engine):
                self.engine = engine
            case Broken(reason):
                self.broken = reason
                self._finish(error=LayerDiffuseError(f"The engine could not be loaded: {reason}"))
            case Begun(number) if task and task.number == number:
                task.begun = True
            case Step(number, progress) if task and task.number == number:
                task.report(progress)
            case Done(number, outcome) if task and task.number == number:
                self._finish(outcome=outcome)
            case Failed(number, error) if task and task.number == number:
                self._finish(error=error)
            case _:  # of a request that was given up
                pass

    def _has_ended(self) -> None:
        self.gone.set()
        begun = self.task is not None and self.task.begun
        self._finish(error=WorkerDied(_how_it_ended(self.process.exitcode)) if begun else None)

    def _finish(self, outcome: Outcome | None = None, error: LayerDiffuseError | None = None) -> None:
        if self.task is not None:
            self.task.outcome, self.task.error = outcome, error
            self.task.over.set()
            self.task = None


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
        self._current: _Worker | None = None
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

    async def run(self, task: Task, inputs: Inputs, report: Report) -> Outcome:
        """Run one task; see `Backend.run`."""
        from layerdiffuse_mcp.backends.messages import Run

        async with self._turn:
            for _ in range(ATTEMPTS):
                outcome = await self._done(await self._living(), lambda number: Run(number, task, inputs), report)
                if outcome is not None:
                    return outcome
            raise WorkerDied("The worker process ends as soon as it starts; its log is on the server's stderr.")

    async def unload(self, model: str | None = None) -> list[str]:
        """Drop a model, or all, ahead of whatever waits; see `Backend.unload`. It starts no worker."""
        from layerdiffuse_mcp.backends.messages import Unload

        async with self._turn:
            worker = self._current
            if worker is None or not worker.usable or not worker.ready:
                return []
            outcome = await self._done(worker, lambda number: Unload(number, model), _ignore)
            return list(outcome.status["unloaded"]) if outcome and outcome.status else []

    async def _done(self, worker: _Worker, command: Callable[[int], object], report: Report) -> Outcome | None:
        """What came of a command, made of its number; None if the worker ended without having begun it."""
        task = _Task(next(self._numbers), report)
        worker.hand_over(task, command(task.number))
        try:
            await task.over.wait()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._stop(worker, task)
            raise
        if task.error is not None:
            raise task.error
        return task.outcome

    def state(self) -> list[WorkerState]:
        """The worker's phase, process id and last report."""
        worker = self._current
        if worker is None or not worker.usable:
            return [WorkerState("stopped", None, {})]
        return [WorkerState(worker.phase, worker.process.pid, worker.engine)]

    async def close(self) -> None:
        """End the worker; a request that still runs is given up."""
        self._closed = True
        with anyio.CancelScope(shield=True):
            async with self._starting:  # a worker that is being spawned has to be known before it can be ended
                worker = self._current
            if worker is None:
                return
            if worker.ready:  # one that still imports has nothing to put away
                if worker.task is not None:
                    worker.cancel(worker.task)
                worker.end()
                with anyio.move_on_after(EXIT_GRACE):
                    await worker.gone.wait()
            await worker.killed()

    async def _living(self) -> _Worker:
        async with self._starting:
            if self._closed:
                raise WorkerDied("The server is closing.")
            if self._current is None or not self._current.usable:
                with anyio.CancelScope(shield=True):  # nobody could end a process that was spawned and forgotten
                    await self._replace()
            assert self._current is not None
            return self._current

    async def _replace(self) -> None:
        if self._current is not None:  # two would share the device's memory
            await self._current.killed()
        try:
            process, connection = await anyio.to_thread.run_sync(self._spawn)
            try:
                self._current = _Worker(process, connection)
            except RuntimeError:
                process.kill()
                raise
        except (OSError, RuntimeError) as error:  # no descriptors, no memory, no threads
            raise WorkerDied(
                f"The worker process could not be started ({error}). Close other programs, or try again later."
            ) from error

    def _spawn(self) -> "tuple[BaseProcess, Connection[Any, Any]]":
        import multiprocessing  # not needed to answer a client's first questions

        from layerdiffuse_mcp.backends import spawning, worker

        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=worker.main, args=(theirs, self._settings, self._engine), name="layerdiffuse-worker", daemon=True
        )
        try:
            spawning.start(process)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return process, ours

    async def _stop(self, worker: _Worker, task: _Task) -> None:
        worker.cancel(task)
        if not worker.ready or self._closed:
            return  # it will skip the request once it has started, or is ended by `close`
        with anyio.move_on_after(self._cancel_grace):
            await task.over.wait()
            return
        logger.warning("a cancelled request did not stop within %s s: its worker is killed", self._cancel_grace)
        await worker.killed()


def _how_it_ended(exitcode: int | None) -> str:
    how = f"with exit code {exitcode}"
    if exitcode is not None and exitcode < 0:
        how = f"by signal {_signal_name(-exitcode)}"
    hint = " The system may have run out of memory: ask for a smaller size or count." if exitcode == -9 else ""
    return f"The worker process ended {how} while it ran this job.{hint} The next job gets a new worker."


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have numbers only
        first = getattr(signal, "SIGRTMIN", number)
        return f"SIGRTMIN+{number - first}" if number > first else str(number)
