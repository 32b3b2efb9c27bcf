"""The program of a worker that several servers use: it listens for them, and ends a while after the last has gone.

Started by `shared`, in a session of its own, with nothing of its server's but the environment.
"""

import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing import connection as connections
from multiprocessing.connection import Connection, Listener
from typing import Any

import psutil
from filelock import FileLock

from layerdiffuse_mcp.backends.clients import Client
from layerdiffuse_mcp.backends.messages import Hello
from layerdiffuse_mcp.backends.shared import private_folder
from layerdiffuse_mcp.backends.worker import Worker, logger, prepare
from layerdiffuse_mcp.settings import Settings

BACKLOG = 16


def main(
    address: str,
    key: bytes,
    settings: Settings,
    engine: str,
    environment: Mapping[str, str],
    linger: float,
    grace: float,
) -> None:
    """Serve requests of whoever comes.

    Args:
        address: where to listen; what is left there of another worker goes.
        key: what servers have to know.
        settings: handed to the engine.
        engine: the engine's class as `module:name`.
        environment: set before the engine is imported.
        linger: seconds for which to stay without a server.
        grace: seconds that the task of a server which has gone gets to stop.
    """
    private_folder()
    if sys.platform != "win32":
        with suppress(FileNotFoundError):
            os.unlink(address)
    listener = Listener(address, backlog=BACKLOG)
    if sys.platform != "win32":
        os.chmod(address, 0o600)
    os.write(1, b"listens")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    prepare(environment)  # lets go of standard output
    SharedWorker(settings, listener, key, linger, grace).serve(engine)


class SharedWorker(Worker):
    """A worker at which servers come and go."""

    def __init__(self, settings: Settings, listener: Listener, key: bytes, linger: float, grace: float) -> None:
        super().__init__(settings)
        self._listener, self._key, self._linger, self._grace = listener, key, linger, grace
        self._company = threading.Event()
        for forever in (self._accept, self.left_alone):  # nobody may come at all
            threading.Thread(target=forever, daemon=True, name=forever.__name__).start()

    def gone(self, client: Client) -> None:
        """A server has gone; if what it wanted does not stop, a new worker has to do what the others want."""
        request = self.current
        if request is not None and request.client is client and not request.over.wait(self._grace):
            logger.error("the task of a server that has gone did not stop within %s s: the worker ends", self._grace)
            os._exit(1)
        super().gone(client)

    def left_alone(self) -> None:
        """Stay a while for the next server; nobody can come from the moment in which it is too late."""
        self._company.clear()
        if self._company.wait(self._linger):
            return
        with FileLock(private_folder() / "lock"):  # whoever has it may be on the way
            if self.clients:
                return
            self._listener.close()
        super().left_alone()

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except OSError as error:  # closed, or too many files are open
                logger.warning("no server can come: %s", error)
                time.sleep(1)
                continue
            threading.Thread(target=self._welcome, args=(connection,), daemon=True, name="welcome").start()

    def _welcome(self, connection: "Connection[Any, Any]") -> None:
        """Serve who knows the key; one that says nothing keeps nobody else waiting."""
        try:
            connections.deliver_challenge(connection, self._key)
            connections.answer_challenge(connection, self._key)
        except (AuthenticationError, EOFError, OSError) as error:
            logger.warning("somebody without the key is turned away: %s", error)
            connection.close()
            return
        self.add(connection, Hello(os.getpid(), psutil.Process().create_time()))
        self._company.set()
