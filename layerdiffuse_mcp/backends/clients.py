"""A server as its worker sees it: what it asked for, and what it is still to be told.

    client = Client(connection)
    client.send(Ready())             # returns at once, whatever the server does
    client.hear(take)                # returns when the server has gone

A worker may serve several. One thread a client listens, another speaks, so that a server which does not read holds up
neither the engine nor the other servers.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from layerdiffuse_mcp.backends.messages import Busy, Cancel, End, Failed, Run, State, Step, Unload
from layerdiffuse_mcp.errors import Cancelled

MOST = 100
"""Messages that a server may leave unread; of reports beyond them only the latest of a kind is kept."""
BEFORE = "The job was cancelled before it began."
REPORTS = (Step, State, Busy)

logger = logging.getLogger(__name__)


@dataclass
class Request:
    """Something that a server wants done; `begun` from the moment in which the engine has it until it is `over`."""

    client: "Client"
    command: Run | Unload
    begun: bool = False
    withdrawn: bool = False
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants it any more."""
        return self.withdrawn or self.client.gone


class Client:
    """A connection to a server. Safe to use from several threads."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self.gone = False
        self._connection = connection
        self._requests: dict[int, Request] = {}
        self._changed = threading.Condition()
        self._unsent: list[object] = []
        self._sending = False
        threading.Thread(target=self._speak, daemon=True, name="speak").start()

    def send(self, message: object) -> None:
        """Have it told, after all that it is told before; nothing happens if it has gone."""
        with self._changed:
            if len(self._unsent) >= MOST and isinstance(message, REPORTS):
                self._unsent = [other for other in self._unsent if type(other) is not type(message)]
            self._unsent.append(message)
            self._changed.notify_all()

    def flush(self, seconds: float) -> None:
        """Return when it has been sent everything, or has gone, or after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self.gone or not (self._unsent or self._sending), seconds)

    def hear(self, take: Callable[[Request], None]) -> None:
        """Hand on what it asks for until it goes; then nobody wants that any more."""
        try:
            while not isinstance(message := self._connection.recv(), End):
                if isinstance(message, Cancel):
                    self._withdraw(message.number)
                else:
                    request = self._requests[message.number] = Request(self, message)
                    take(request)
        except (EOFError, OSError):
            pass
        except Exception:
            logger.exception("a server said what cannot be understood: it is let go")
        with self._changed:
            self.gone = True
            self._changed.notify_all()

    def begin(self, request: Request) -> bool:
        """Whether the engine is to do a request of its, which cannot be withdrawn without a word from now on."""
        with self._changed:
            request.begun = not request.cancelled
            if not request.begun:
                self._requests.pop(request.command.number, None)
            return request.begun

    def end(self, request: Request, answer: object) -> None:
        """Tell it what came of a request."""
        with self._changed:
            del self._requests[request.command.number]
        request.over.set()
        self.send(answer)

    def _withdraw(self, number: int) -> None:
        with self._changed:
            request = self._requests.get(number)
            if request is None:
                return
            request.withdrawn = True
            begun = request.begun
        if not begun:
            self.send(Failed(number, Cancelled(BEFORE)))

    def _speak(self) -> None:
        while True:
            with self._changed:
                self._sending = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._unsent or self.gone)
                if self.gone:
                    break
                message, self._sending = self._unsent.pop(0), True
            try:
                self._connection.send(message)
            except OSError:  # it has gone
                break
        with self._changed:  # a descriptor that is closed while somebody reads it may be another's by then
            self._changed.wait_for(lambda: self.gone)
        self._connection.close()
