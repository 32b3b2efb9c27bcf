"""Where the workers of this machine run: one a device, or as many as were asked for on a CPU.

    places(Settings())                                 # two NVIDIA cards: Place(device="0"), Place(device="1")
    places(Settings(device="cpu", workers=4))          # four, each with a quarter of the cores and of the memory

The server process imports no torch: devices are counted by NVIDIA's library, which their driver brings. Workers see
one device each, through the environment in which they start.
"""

import ctypes
import logging
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from layerdiffuse_mcp.settings import SHARE, Settings

VISIBLE = "CUDA_VISIBLE_DEVICES"
THREADS = "OMP_NUM_THREADS"
NVML = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
BUILT_FOR_CUDA = re.compile(r"^cuda\b[^=\n]*=\s*['\"]", re.MULTILINE)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where one worker runs.

    device: the one that it sees, as CUDA's variable names it; None for whatever the settings say. threads: how many it
    computes with; None for as many as torch takes. sharing: workers that share this one's memory, itself included.
    """

    device: str | None = None
    threads: int | None = None
    sharing: int = 1

    @property
    def environment(self) -> dict[str, str]:
        """What the process needs in its environment before it imports torch."""
        said = {VISIBLE: self.device, THREADS: self.threads}
        return {name: str(value) for name, value in said.items() if value is not None}

    def settings(self, settings: Settings) -> Settings:
        """The settings of this worker: of memory it takes its share."""
        if self.sharing == 1:
            return settings
        import psutil

        limit = settings.max_memory or psutil.virtual_memory().total * SHARE / 1e9
        return settings.model_copy(update={"max_memory": limit / self.sharing})


def places(
    settings: Settings, environment: Mapping[str, str] = os.environ, devices: tuple[str, ...] | None = None
) -> tuple[Place, ...]:
    """A place for each worker.

    Args:
        devices: names of the CUDA devices that may be used; left out, those that this machine has.
    """
    asked = None if settings.workers == "auto" else settings.workers
    if devices is None:
        devices = cuda_devices(environment) if settings.device in ("auto", "cuda") else ()
    if settings.device == "cpu" or (settings.device == "auto" and not devices and not _may_be_elsewhere()):
        count = asked or 1
        threads = max(1, _cores() // count) if count > 1 and THREADS not in environment else None
        return (Place(threads=threads, sharing=count),) * count
    usable = max(1, len(devices))
    if asked and asked > usable:
        logger.warning("%s workers were asked for, and there are %s: no more than one a device", asked, usable)
    return tuple(map(Place, devices[:asked])) if usable > 1 else (Place(),)


def _may_be_elsewhere() -> bool:
    """Whether there may be a device that is not NVIDIA's; how many is not known."""
    return (platform.system() == "Darwin" and platform.machine() == "arm64") or os.path.exists("/dev/kfd")


def cuda_devices(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """NVIDIA's devices that torch can use here, by the names that CUDA's variable takes; none if that is not known."""
    if not _torch_is_for_cuda():
        return ()
    count = _nvml_count()
    chosen = environment.get(VISIBLE)
    if chosen is None:
        return tuple(map(str, range(count)))
    names: list[str] = []
    for name in (part.strip() for part in chosen.split(",")):
        if not name or name.startswith("-") or (name.isdecimal() and int(name) >= count):
            break  # as CUDA does: what follows a wrong one does not count
        names.append(name)
    return tuple(names) if count else ()


def _torch_is_for_cuda() -> bool:
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    try:
        return BUILT_FOR_CUDA.search(Path(spec.origin).with_name("version.py").read_text()) is not None
    except OSError:
        return False


def _nvml_count() -> int:
    """How many devices NVIDIA's driver has."""
    try:
        library = ctypes.CDLL(NVML)
    except OSError:
        return 0
    count = ctypes.c_uint(0)
    if library.nvmlInit_v2() != 0:
        return 0
    try:
        return count.value if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0 else 0
    finally:
        library.nvmlShutdown()


def _cores() -> int:
    """Cores that this process may use."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(psutil.cpu_count(logical=False) or allowed, allowed)
