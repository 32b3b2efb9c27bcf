"""How an engine's class is imported, wherever that happens: what torch needs around it, and no more than drawing uses.

    engine = load_engine()(settings)

Only processes that draw call it. What is imported here decides how long a worker takes to start.
"""

import ctypes
import importlib
import logging
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Protocol

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.plan import Inputs, Task
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.imports import uncollected
from layerdiffuse_mcp.settings import Settings

OURS = "layerdiffuse_mcp."
"""What the names of our own models begin with, which get the rest by `models/whole.py`."""
ENGINE = "layerdiffuse_mcp.engine.engine:Engine"
DEFAULTS = {
    # Threads that spin while they wait stall each other as soon as anything else runs on the machine: with
    # both cores also busy elsewhere, one picture of the pocket model took 229 s spinning and 4 s sleeping.
    "OMP_WAIT_POLICY": "passive",
    # Large tensors on pages of 2 MB: a tenth off SD 1.5's calls at 256 px on a CPU, nothing off those at 512 px.
    "THP_MEM_ALLOC_ENABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DIFFUSERS_VERBOSITY": "error",
    "TRANSFORMERS_VERBOSITY": "error",
}
MALLOC = {"MALLOC_MMAP_MAX_": (-4, 0), "MALLOC_TRIM_THRESHOLD_": (-1, -1)}
"""Options of glibc's allocator by the variable with which a user sets them: number and value for `mallopt`."""
UNUSED = ("scipy", "transformers")
"""diffusers does without them where they are not installed, and imports all of them where they are."""
COMPILER = "torch._dynamo"
"""Half of what diffusers takes to import, for two decorators that matter to `torch.compile` alone."""

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """What draws; `layerdiffuse_mcp.engine.engine.Engine` is the real one."""

    def run(
        self,
        task: Task,
        inputs: Inputs,
        report: Callable[[Progress], None],
        cancelled: Callable[[], bool] | None = None,
    ) -> Outcome: ...

    def unload(self, model: str | None = None) -> list[str]: ...

    def status(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


@uncollected()
def load_engine(name: str = ENGINE) -> Callable[[Settings], Engine]:
    """The class `module:name`, imported in half of the time that its libraries take as they come.

    The environment is set first, where the user has not: of no effect once torch is imported.
    """
    for variable, value in DEFAULTS.items():
        os.environ.setdefault(variable, value)
    keep_freed_memory()
    if any(card.drawer == "diffusers" and not card.model.startswith(OURS) for card in FAMILIES.values()):
        return _found(name)  # their pipelines may want all of it, and diffusers looks once
    try:
        with lean_imports():
            return _found(name)
    except (ImportError, RuntimeError) as error:  # diffusers' lazy modules raise the second
        logger.warning("importing less than everything did not work, so the start takes longer: %s", error)
        return _found(name)


def keep_freed_memory() -> None:
    """Have the C library keep what is freed for what is allocated next, where it is glibc and the user has not set it.

    Otherwise every large tensor is fetched from the system and zeroed page by page, and goes back as soon as it is
    freed: 14% of an SD 1.5 call at 256 px on a CPU, 7% at 512 px. `device.memory.trim_heap` gives back what is kept.
    """
    if sys.platform != "linux" or MALLOC.keys() & os.environ.keys():
        return
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # glibc has it, musl has not
        for option, value in MALLOC.values():
            mallopt(option, value)


@contextmanager
def lean_imports() -> Generator[None]:
    """Keep diffusers from importing what drawing does not use.

    Meanwhile the libraries in `UNUSED` count as not installed, and a stand-in with the two decorators takes the place
    of the compiler. Afterwards whoever wants them gets them, and what was imported before stays as it was.
    """
    stands_in: dict[str, ModuleType | None] = {name: None for name in UNUSED}
    compiler = stands_in[COMPILER] = ModuleType(COMPILER)
    compiler.__dict__.update(allow_in_graph=_as_it_is, disable=_as_it_is)
    placed = {name: module for name, module in stands_in.items() if name not in sys.modules}
    sys.modules.update(placed)  # pyright: ignore[reportCallIssue, reportArgumentType] - None is how one says "not here"
    try:
        yield
    finally:
        for name in placed:
            sys.modules.pop(name, None)


def _as_it_is(function: Any = None, *_: Any, **__: Any) -> Any:
    """A decorator, with or without arguments, that changes nothing."""
    return _as_it_is if function is None else function


def _found(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
