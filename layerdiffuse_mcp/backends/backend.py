"""Where engines run: the one interface that the queue knows.

A backend runs tasks on engines that live outside the server's process. It knows no MCP and keeps no queue: `jobs/`
gives each of its workers one task at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.plan import Download, Inputs, Task

Report = Callable[[Progress], None]
Phase = Literal["stopped", "starting", "ready", "busy"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True)
class WorkerState:
    """What is known of a worker without asking it anything.

    `engine` is the engine's own report (device, memory, cached models) as of the end of
    the last request; empty until the worker has started. `worker` is the number by which `run` takes it.
    `failed`: the last attempt to start it came to nothing.
    """

    phase: Phase
    pid: int | None
    engine: dict[str, Any]
    worker: int = 0
    failed: bool = False

    @property
    def models(self) -> dict[str, frozenset[str]]:
        """The models that it holds, each with the layer files that were read for it."""
        return {one["model"]: frozenset(one.get("layers", ())) for one in self.engine.get("loaded", ())}


class Backend(Protocol):
    """Runs tasks; cancelling a `run` stops its task and leaves the worker ready."""

    @property
    def workers(self) -> int:
        """How many tasks may run at once."""
        ...

    async def warm_up(self) -> None:
        """Start whatever takes long to start, and return without waiting for it."""
        ...

    async def run(self, task: Task, inputs: Inputs, report: Report, worker: int | None = None) -> Outcome:
        """Run one task to its end; `report` is called in the caller's event loop.

        Args:
            worker: which one is to run it, by the number of its state; left out, any.

        Raises:
            WorkerDied: the process that ran it ended.
            WorkerLost: with the machine that it ran on.
            LayerDiffuseError: whatever the engine raised.
        """
        ...

    async def prepare(self, downloads: Sequence[Download], report: Report) -> None:
        """Fetch models wherever workers run that is not this machine, which has them; `report` as in `run`.

        Raises:
            LayerDiffuseError: they cannot be had there.
        """
        ...

    async def unload(self, model: str | None = None) -> list[str]:
        """Drop a model, or all, from every worker as soon as it is between two tasks; the names of those dropped."""
        ...

    def state(self) -> list[WorkerState]:
        """One entry a worker, at once."""
        ...

    async def close(self) -> None:
        """End every worker."""
        ...
