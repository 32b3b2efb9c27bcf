"""The program of a worker process: one engine, one request at a time.

The server speaks to it through one two-way pipe. The main thread runs the engine; a
second thread listens, so that a `Cancel` is seen while the engine computes and the
end of the server (the pipe closes, however it died) ends the worker too. An engine
that says it is exhausted gets no further request: the worker ends, for a new one.

    Run, Unload, Cancel, End ->  | worker |  -> Ready | Broken, Begun, Step, Done | Failed, State
"""

import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from layerdiffuse_mcp.api.outcome import EXHAUSTED, Outcome, Progress
from layerdiffuse_mcp.backends.connection import Connection
from layerdiffuse_mcp.backends.messages import Broken, Cancel, Done, Failed, Ready, Run, State, Step, Unload
from layerdiffuse_mcp.engine.startup import Engine, load_engine
from layerdiffuse_mcp.errors import Cancelled, LayerDiffuseError, OutOfMemory, OutputError
from layerdiffuse_mcp.logs import log_to
from layerdiffuse_mcp.settings import Settings

LAST_STEP = 2.0
"""Seconds a request gets to stop once the server is gone."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class End:
    """End after what is being done."""


@dataclass(frozen=True)
class Begun:
    """A request is being worked on: it is not to be given to another worker if this one dies."""

    number: int


def main(connection: Connection, settings: Settings, engine: str, environment: Mapping[str, str]) -> None:
    """Serve requests until the server is gone.

    Args:
        connection: the worker's end of the pipe.
        settings: handed to the engine.
        engine: the engine's class as `module:name`.
        environment: set before the engine is imported.
    """
    os.environ.update(environment)
    os.dup2(2, 1)  # before any library can print: descriptor 1 may be the protocol's
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server decides
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    try:
        log_to(settings.log_file, "worker")
    except OutputError as error:
        logger.warning("%s", error)
    serve(connection, settings, engine)


def serve(connection: Connection, settings: Settings, engine: str) -> None:
    """Do what is asked until the connection says End, or ends; whatever else this process is."""
    _Worker(connection, settings).serve(engine)


@dataclass
class _Worker:
    connection: Connection
    settings: Settings
    inbox: "queue.SimpleQueue[Run | Unload | None]" = field(default_factory=lambda: queue.SimpleQueue())
    cancelled: set[int] = field(default_factory=lambda: set[int]())
    deserted: bool = False

    def serve(self, engine_name: str) -> None:
        threading.Thread(target=self._listen, daemon=True, name="listen").start()
        try:
            engine = load_engine(engine_name)(self.settings)
        except Exception as error:  # whatever an import raises, the server has to hear of it
            logger.exception("the engine could not be loaded")
            self._send(Broken(f"{type(error).__name__}: {error}"))
            sys.exit(1)
        self._send(Ready())
        self._send(self._state(engine))
        idle_timeout = self.settings.idle_timeout or None
        timeout = None
        while True:
            try:
                command = self.inbox.get(timeout=timeout)
            except queue.Empty:
                engine.unload()
                self._send(self._state(engine))
                timeout = None
                continue
            if command is None:
                break
            answer = self._answer(engine, command)
            state = self._state(engine)
            self._send(state)  # first: whoever has the answer finds the state up to date
            self._send(answer)
            if state.engine.get(EXHAUSTED):
                break
            timeout = idle_timeout
        engine.close()

    def _answer(self, engine: Engine, command: Run | Unload) -> Done | Failed:
        def cancelled() -> bool:
            return self.deserted or command.number in self.cancelled

        def on_step(progress: Progress) -> None:
            if cancelled():
                raise Cancelled("The job was cancelled.")
            self._send(Step(command.number, progress))

        self._send(Begun(command.number))
        try:
            if command.number in self.cancelled:
                raise Cancelled("The job was cancelled before it began.")
            if isinstance(command, Unload):
                return Done(command.number, Outcome(status={"unloaded": engine.unload(command.model)}))
            return Done(command.number, engine.run(command.task, command.inputs, on_step, cancelled))
        except LayerDiffuseError as error:
            return Failed(command.number, type(error)(str(error)))
        except Exception as error:  # a bug, ours or a library's: the job fails, the worker lives
            logger.exception("the engine failed unexpectedly")
            text = f"The engine failed unexpectedly ({type(error).__name__}: {error}). The server is ready for more."
            return Failed(command.number, LayerDiffuseError(text))
        finally:
            self.cancelled.discard(command.number)

    def _state(self, engine: Engine) -> State:
        try:
            return State(engine.status())
        except LayerDiffuseError as error:
            return State({"error": str(error), **({EXHAUSTED: True} if isinstance(error, OutOfMemory) else {})})

    def _listen(self) -> None:
        try:
            while True:
                message = self.connection.recv()
                if isinstance(message, Cancel):
                    self.cancelled.add(message.number)
                else:
                    self.inbox.put(None if isinstance(message, End) else message)
        except (EOFError, OSError):
            self.deserted = True
            self.inbox.put(None)
            time.sleep(LAST_STEP)
            os._exit(0)

    def _send(self, report: object) -> None:
        try:
            self.connection.send(report)
        except OSError:
            self.deserted = True
