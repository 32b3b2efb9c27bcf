"""What a server and a worker need of what lies between them: a process, and the way to it and back."""

from typing import Any, Protocol


class Process(Protocol):
    """A process, wherever it runs; as in multiprocessing."""

    @property
    def pid(self) -> int | None: ...

    def kill(self) -> None: ...

    def join(self, timeout: float | None = None) -> None: ...

    def is_alive(self) -> bool: ...


class Connection(Protocol):
    """One end of the way. Once the other is gone `recv` raises EOFError or OSError, and `send` OSError."""

    def send(self, message: Any, /) -> None: ...

    def recv(self) -> Any: ...

    def close(self) -> None: ...
