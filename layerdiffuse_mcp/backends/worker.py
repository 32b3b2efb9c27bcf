"""The program of a worker process: one engine, one request at a time, for one server or several.

The main thread runs the engine. Two more for each server (`clients.py`) listen and speak, so that a `Cancel` is seen
while the engine computes. When the last server has gone, however it died (its connection ends), the worker ends too. An
engine that says it is exhausted gets no further request: the worker ends, for a new one.

    Run, Unload, Cancel, End ->  | worker |  -> Ready | Broken, Busy, Begun, Step, Done | Failed, State
"""

import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from layerdiffuse_mcp.api.outcome import EXHAUSTED, Outcome, Progress
from layerdiffuse_mcp.backends.clients import BEFORE, Client, Request
from layerdiffuse_mcp.backends.messages import Begun, Broken, Busy, Done, Failed, Ready, State, Step, Unload
from layerdiffuse_mcp.engine.startup import Engine, load_engine
from layerdiffuse_mcp.errors import Cancelled, LayerDiffuseError, OutOfMemory, OutputError
from layerdiffuse_mcp.logs import log_to
from layerdiffuse_mcp.settings import Settings

LAST_STEP = 2.0
"""Seconds a request gets to stop once the last server is gone, and a server to read the last that it is told."""
WAITS = "waits for another client's job"

logger = logging.getLogger(__name__)


def main(connection: "Connection[Any, Any]", settings: Settings, engine: str, environment: Mapping[str, str]) -> None:
    """Serve requests until the server is gone.

    Args:
        connection: the worker's end of the pipe.
        settings: handed to the engine.
        engine: the engine's class as `module:name`.
        environment: set before the engine is imported.
    """
    prepare(environment)
    try:
        log_to(settings.log_file, "worker")
    except OutputError as error:
        logger.warning("%s", error)
    worker = Worker(settings)
    worker.add(connection)
    worker.serve(engine)


def prepare(environment: Mapping[str, str]) -> None:
    """Make this process one in which an engine can be imported and whose libraries may print."""
    os.environ.update(environment)
    os.dup2(2, 1)  # before any library can print: descriptor 1 may be the protocol's
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server decides
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)


class Worker:
    """An engine and the servers that use it; each hears of the engine's state, and of its own requests."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.inbox: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self.clients: list[Client] = []
        self.lock = threading.Lock()
        self.current: Request | None = None
        self._latest: dict[type, object] = {}
        """What a server has to know that comes later."""

    def add(self, connection: "Connection[Any, Any]", *greeting: object) -> None:
        """Serve one more server."""
        client = Client(connection)
        with self.lock:
            for message in (*greeting, *self._latest.values(), Busy(self.current is not None)):
                client.send(message)
            self.clients.append(client)
        threading.Thread(target=self._listen, args=(client,), daemon=True, name="listen").start()

    def serve(self, engine_name: str) -> None:
        """Answer requests, the first first, until all servers are gone or the engine is no longer fit."""
        try:
            engine = load_engine(engine_name)(self.settings)
        except Exception as error:  # whatever an import raises, the servers have to hear of it
            logger.exception("the engine could not be loaded")
            self._tell(Broken(f"{type(error).__name__}: {error}"))
            self._flush()
            sys.exit(1)
        self._tell(Ready())
        self._tell(self._state(engine))
        idle_timeout = self.settings.idle_timeout or None
        timeout = None
        while True:
            try:
                request = self.inbox.get(timeout=timeout)
            except queue.Empty:
                engine.unload()
                self._tell(self._state(engine))
                timeout = None
                continue
            if request is None:
                break
            if not request.client.begin(request):
                continue
            self._now(request, begun=True)
            answer = self._answer(engine, request)
            state = self._state(engine)
            self._tell(state)  # first: whoever has the answer finds the state up to date
            request.client.end(request, answer)
            self._now(request, begun=False)
            if state.engine.get(EXHAUSTED):
                break
            timeout = idle_timeout
        self._flush()
        engine.close()

    def left_alone(self) -> None:
        """The last server has gone: end, and soon."""
        self.inbox.put(None)
        time.sleep(LAST_STEP)
        os._exit(0)

    def _answer(self, engine: Engine, request: Request) -> Done | Failed:
        client, command = request.client, request.command

        def on_step(progress: Progress) -> None:
            if request.cancelled:
                raise Cancelled("The job was cancelled.")
            client.send(Step(command.number, progress))

        client.send(Begun(command.number))
        client.flush(LAST_STEP)  # whatever happens to this process, the request is not done again
        try:
            if request.cancelled:
                raise Cancelled(BEFORE)
            if isinstance(command, Unload):
                return Done(command.number, Outcome(status={"unloaded": engine.unload(command.model)}))
            return Done(command.number, engine.run(command.task, command.inputs, on_step, lambda: request.cancelled))
        except LayerDiffuseError as error:
            return Failed(command.number, type(error)(str(error)))
        except Exception as error:  # a bug, ours or a library's: the job fails, the worker lives
            logger.exception("the engine failed unexpectedly")
            text = f"The engine failed unexpectedly ({type(error).__name__}: {error}). The server is ready for more."
            return Failed(command.number, LayerDiffuseError(text))

    def _state(self, engine: Engine) -> State:
        try:
            return State(engine.status())
        except LayerDiffuseError as error:
            return State({"error": str(error), **({EXHAUSTED: True} if isinstance(error, OutOfMemory) else {})})
        except Exception as error:  # a device that was lost says so whatever it is asked, to this process
            logger.exception("the engine cannot tell its state")
            return State({"error": f"{type(error).__name__}: {error}", EXHAUSTED: True})

    def _listen(self, client: Client) -> None:
        client.hear(self._take)
        self.gone(client)

    def gone(self, client: Client) -> None:
        """A server has gone, and its requests with it."""
        with self.lock:
            self.clients.remove(client)
            alone = not self.clients
        if alone:
            self.left_alone()

    def _take(self, request: Request) -> None:
        current = self.current
        if current is not None and current.client is not request.client:
            request.client.send(Step(request.command.number, Progress(fraction=0.0, message=WAITS)))
        self.inbox.put(request)

    def _now(self, request: Request, *, begun: bool) -> None:
        """Note what the engine is about, and have all others know whether it is."""
        with self.lock:
            self.current = request if begun else None
            for client in self.clients:
                if client is not request.client:
                    client.send(Busy(begun))

    def _tell(self, message: object) -> None:
        with self.lock:
            self._latest[type(message)] = message
            for client in self.clients:
                client.send(message)

    def _flush(self) -> None:
        for client in [*self.clients]:
            client.flush(LAST_STEP)
