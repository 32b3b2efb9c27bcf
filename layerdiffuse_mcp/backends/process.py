"""A worker process as the server sees it: started, spoken to, heard, reaped.

    process = await WorkerProcess.start(settings, engine, place)
    work = process.hand_over(lambda number: Run(number, task, inputs), report)
    await work.over.wait()               # then it has an outcome or an error, or was never begun
    await process.killed()

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
from typing import Any, NamedTuple, Protocol

import anyio
import anyio.to_thread

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.backends.backend import Phase, Report
from layerdiffuse_mcp.backends.places import Place
from layerdiffuse_mcp.errors import LayerDiffuseError, WorkerDied
from layerdiffuse_mcp.settings import Settings

EXIT_GRACE = 1.0
"""Seconds a worker gets to end by itself when the server closes, or once it has closed its pipe."""
OUR_LOG = "on the server's stderr"

logger = logging.getLogger(__name__)


def ignore(_: Progress) -> None:
    """A report that nobody reads."""


@dataclass
class Work:
    """A request that a worker has been given. One that is over has an outcome or an error, or was never begun."""

    number: int
    report: Report
    over: anyio.Event = field(default_factory=anyio.Event)
    outcome: Outcome | None = None
    error: LayerDiffuseError | None = None
    begun: bool = False


class Process(Protocol):
    """What has to be known of a process, wherever it runs; as in multiprocessing."""

    @property
    def pid(self) -> int | None: ...

    def kill(self) -> None: ...

    def join(self, timeout: float | None = None) -> None: ...

    def is_alive(self) -> bool: ...


class Connection(Protocol):
    """The way to it and back; once it has ended `recv` raises EOFError or OSError, and `send` OSError."""

    def send(self, message: Any, /) -> None: ...

    def recv(self) -> Any: ...

    def close(self) -> None: ...


class Opened(NamedTuple):
    """A process and what goes with it; see `WorkerProcess`."""

    process: Process
    connection: Connection
    death: Callable[[], LayerDiffuseError]
    leave: Callable[[], None]
    log: str = OUR_LOG


class WorkerProcess:
    """A worker process and the two threads that speak and listen to it.

    Args:
        death: why it failed what it did when it ended, asked once it has.
        leave: ends the connection, and the process if nobody else uses it; left out, kills the process.
        log: where it logs, in words.

    Its state is read and changed in the event loop only. `gone` is set once the process has
    ended and been reaped, or is left to others, and nothing of it is here.
    """

    def __init__(
        self,
        process: Process,
        connection: Connection,
        death: Callable[[], LayerDiffuseError],
        leave: Callable[[], None] | None = None,
        log: str = OUR_LOG,
    ) -> None:
        self.process, self.connection, self.log = process, connection, log
        self._death, self._leave = death, leave or process.kill
        self.task: Work | None = None
        self.ready = self.elsewhere = False
        self.broken: str | None = None
        self.engine: dict[str, Any] = {}
        self.gone = anyio.Event()
        self._numbers = itertools.count(1)
        self._loop = asyncio.get_running_loop()
        self._outbox: queue.SimpleQueue[object | None] = queue.SimpleQueue()
        self._speaker = threading.Thread(target=self._speak, name="speak to worker", daemon=True)
        self._listener = threading.Thread(target=self._listen, name="listen to worker", daemon=True)
        self._speaker.start()
        self._listener.start()

    @classmethod
    async def start(cls, settings: Settings, engine: str, place: Place, number: int = 0) -> "WorkerProcess":
        """A process: a new one, which imports its engine while the server goes on, or one shared with other servers.

        Args:
            number: of several at places that are alike, which it is.

        Raises:
            WorkerDied: it could not be started.
        """
        try:
            opened = await anyio.to_thread.run_sync(_open, settings, engine, place, number)
            try:
                return cls(*opened)
            except RuntimeError:
                opened.leave()
                raise
        except (OSError, RuntimeError) as error:  # no descriptors, no memory, no threads
            raise WorkerDied(
                f"The worker process could not be started ({error}). Close other programs, or try again later."
            ) from error

    @property
    def usable(self) -> bool:
        """Whether it takes requests, now or once it has started."""
        return self.broken is None and not self.gone.is_set()

    @property
    def phase(self) -> Phase:
        """What it does now, for whichever server."""
        return "starting" if not self.ready else "busy" if self.task or self.elsewhere else "ready"

    def hand_over(self, command: Callable[[int], object], report: Report) -> Work:
        """Give it a command, made of the number by which it is known."""
        self.task = work = Work(next(self._numbers), report)
        self._outbox.put(command(work.number))
        return work

    def cancel(self, task: Work) -> None:
        """Ask it to stop a request, of which nothing more is reported."""
        from layerdiffuse_mcp.backends.messages import Cancel

        task.report = ignore
        self._outbox.put(Cancel(task.number))

    def end(self) -> None:
        """Tell it that this server goes, and takes back all that it asked for."""
        from layerdiffuse_mcp.backends.messages import End

        self._outbox.put(End())

    async def killed(self) -> None:
        """End it at once, if it has not ended yet; returns when nothing of it is left."""
        await self._over(self.process.kill)

    async def left(self) -> None:
        """Be done with it, if it has not ended yet; returns when nothing of it is here."""
        await self._over(self._leave)

    async def _over(self, end: Callable[[], None]) -> None:
        if not self.gone.is_set():
            end()
        await self.gone.wait()
        await anyio.to_thread.run_sync(self._listener.join)

    def _speak(self) -> None:
        try:
            while (message := self._outbox.get()) is not None:
                self.connection.send(message)
        except OSError:  # it has ended: the listener hears that too
            pass
        except Exception:
            logger.exception("a worker could not be told what to do: it is left")
            self._leave()

    def _listen(self) -> None:
        """Hand on what it says until it ends; the only place that reaps the process."""
        try:
            while True:
                self._in_loop(self._hear, self.connection.recv())
        except (EOFError, OSError):
            pass
        except Exception:
            logger.exception("a worker said what cannot be understood: it is left")
            self._leave()
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
        from layerdiffuse_mcp.backends.messages import Begun, Broken, Busy, Done, Failed, Ready, State, Step

        task = self.task
        match message:
            case Ready():
                self.ready = True
            case State(engine):
                self.engine = engine
            case Busy(elsewhere):
                self.elsewhere = elsewhere
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
        self._finish(error=self._death() if begun else None)

    def _finish(self, outcome: Outcome | None = None, error: LayerDiffuseError | None = None) -> None:
        if self.task is not None:
            self.task.outcome, self.task.error = outcome, error
            self.task.over.set()
            self.task = None


def _open(settings: Settings, engine: str, place: Place, number: int) -> Opened:
    if settings.share_workers is True:
        from layerdiffuse_mcp.backends import shared

        try:
            process, connection = shared.attach(settings, engine, place, number)
            return Opened(process, connection, process.death, process.leave, process.log)
        except (OSError, NotImplementedError) as error:  # the second of a file system without locks
            logger.warning("no worker can be shared, so that this server starts its own: %s", error)
    return _spawn(settings, engine, place)


def _spawn(settings: Settings, engine: str, place: Place) -> Opened:
    import multiprocessing  # not needed to answer a client's first questions

    from layerdiffuse_mcp.backends import spawning, worker

    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    given = theirs, place.settings(settings), engine, place.environment
    process = context.Process(target=worker.main, args=given, name="layerdiffuse-worker", daemon=True)
    try:
        spawning.start(process)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return Opened(process, ours, lambda: WorkerDied(_how_it_ended(process.exitcode)), process.kill)


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
