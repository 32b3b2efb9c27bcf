"""What a server and its worker processes say to each other.

Run, Unload, Cancel, End ->  | worker |  -> Hello, Ready | Broken, Busy, Begun, Step, Done | Failed, State
"""

from dataclasses import dataclass
from typing import Any

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.plan import Inputs, Task
from layerdiffuse_mcp.errors import LayerDiffuseError


@dataclass(frozen=True)
class Run:
    """Do this task; `number` names it in every report about it."""

    number: int
    task: Task
    inputs: Inputs


@dataclass(frozen=True)
class Unload:
    """Drop the model of that name, or all; `Done` says in the outcome's status which were `unloaded`."""

    number: int
    model: str | None


@dataclass(frozen=True)
class Cancel:
    """Stop the request of that number where it next asks (see `cancellation`), or never begin it."""

    number: int


@dataclass(frozen=True)
class End:
    """The server goes: it wants nothing any more of what it asked for."""


@dataclass(frozen=True)
class Hello:
    """The first that a shared worker says: its process, and when that was created, in seconds since 1970."""

    pid: int
    created: float


@dataclass(frozen=True)
class Busy:
    """Whether the worker is about something that another server asked for."""

    elsewhere: bool


@dataclass(frozen=True)
class Begun:
    """A request is being worked on: it is not to be given to another worker if this one dies."""

    number: int


@dataclass(frozen=True)
class Ready:
    """The engine is loaded and takes requests."""


@dataclass(frozen=True)
class Broken:
    """The engine could not be loaded; the worker ends."""

    reason: str


@dataclass(frozen=True)
class Step:
    """How far a request is."""

    number: int
    progress: Progress


@dataclass(frozen=True)
class Done:
    """A request ended well."""

    number: int
    outcome: Outcome


@dataclass(frozen=True)
class Failed:
    """A request ended with an error, `Cancelled` included."""

    number: int
    error: LayerDiffuseError


@dataclass(frozen=True)
class State:
    """The engine's own report, sent whenever it may have changed."""

    engine: dict[str, Any]
