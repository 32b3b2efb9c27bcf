"""What every benchmark prints alike: the machine, a table, seconds and memory.

from _report import header, median_of, peak_memory, table

header("Eight-fold decode, 512x512")
seconds = median_of(3, lambda: decode(...))
table([("way", "seconds", "peak MB"), ("plain", seconds, peak_memory() / 1e6)])
"""

import ctypes
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

__all__ = ["apart", "header", "median_of", "peak_memory", "reset_peak_memory", "resident_memory", "table", "text"]


def header(title: str) -> None:
    """Print what is measured, and on what: processor, threads, memory, torch."""
    memory = psutil.virtual_memory().total / 2**30
    print(f"{title}\n{_processor()}, {_threads()} threads, {memory:.0f} GB, torch {version('torch')}\n", flush=True)


def table(rows: Sequence[Sequence[object]]) -> None:
    """Print rows as columns; the first row names them. Numbers stand right, a float has three significant digits."""
    cells = [[text(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    last = list(rows[-1])
    for row in cells:
        aligned = (
            cell.rjust(width) if isinstance(value, int | float) else cell.ljust(width)
            for cell, width, value in zip(row, widths, last, strict=True)
        )
        print("  ".join(aligned).rstrip(), flush=True)


def text(value: object) -> str:
    """A cell of a table."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
    return str(value)


def median_of(rounds: int, call: Callable[[], object]) -> float:
    """The median of the wall seconds that `call` takes."""
    return statistics.median(_seconds(call) for _ in range(rounds))


def apart(measure: Callable[..., Any], *given: object, environment: Mapping[str, str] | None = None) -> Any:
    """What `measure` returns in a process of its own, with these variables in its environment."""
    spawn = multiprocessing.get_context("spawn")
    with mock.patch.dict(os.environ, environment or {}), ProcessPoolExecutor(1, spawn) as process:
        return process.submit(measure, *given).result()


def resident_memory() -> int:
    """Bytes of this process in memory now."""
    return psutil.Process().memory_info().rss


def peak_memory() -> int:
    """The most bytes that this process has had in memory, since `reset_peak_memory` where there is that."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> None:
    """Give freed memory back to the system and let `peak_memory` begin anew; of no effect elsewhere than on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or psutil.cpu_count(logical=False) or 1)
