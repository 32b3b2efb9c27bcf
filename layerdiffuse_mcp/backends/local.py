"""The default backend: worker processes on this machine, one a device, or several on a CPU.

A process is spawned when it is first needed (or by `warm_up`), imports torch where the server does not, and keeps its
models between tasks.
"""

from collections.abc import Sequence
from functools import partial

from layerdiffuse_mcp.backends.places import Place, places
from layerdiffuse_mcp.backends.process import WorkerProcess
from layerdiffuse_mcp.backends.workers import CANCEL_GRACE, Worker, Workers
from layerdiffuse_mcp.engine.startup import ENGINE
from layerdiffuse_mcp.settings import Settings


class LocalBackend(Workers):
    """Runs tasks in processes of their own, one at a time in each.

    Args:
        settings: handed to the workers, each with its share of this machine.
        engine: the class that they run, as `module:name`.
        cancel_grace: seconds a cancelled task gets to reach its next step.
        where: a place for each worker; left out, as the settings and this machine's devices say.
    """

    def __init__(
        self,
        settings: Settings,
        engine: str = ENGINE,
        cancel_grace: float = CANCEL_GRACE,
        where: Sequence[Place] | None = None,
    ) -> None:
        chosen = places(settings) if where is None else where
        starts = [partial(WorkerProcess.start, settings, engine, place, number) for number, place in enumerate(chosen)]
        super().__init__([Worker(number, start, cancel_grace) for number, start in enumerate(starts)])
