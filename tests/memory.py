"""A pytest plugin: the test run and all its processes together stay below a limit of resident memory.

A thread looks at the whole tree every few seconds (workers of xdist, servers, their workers, clients). What is resident
counts, which is told at once; only where that is above the limit, memory that processes share counts once (PSS where
the system tells it, else what each has alone, USS), for which it goes through their pages. Over the limit the run
fails, and its end says which tests ran at the peak.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Any

import psutil
import pytest

LIMIT = 8 * 2**30
"""Bytes that a run may take."""
EVERY = 4.0
"""Seconds between two looks."""


def tree_memory(root: psutil.Process, limit: int) -> int:
    """Bytes that a process and all below it take: exact above `limit`, below it no less than they are. A process that
    ends meanwhile counts as nothing.
    """
    try:
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    resident = sum(_taken(process.memory_info, "rss") for process in tree)
    return resident if resident <= limit else sum(_taken(process.memory_full_info, "pss", "uss") for process in tree)


def _taken(look: Callable[[], Any], *names: str) -> int:
    """The first of these figures that the system tells."""
    try:
        memory = look()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
    return next(getattr(memory, name) for name in names if hasattr(memory, name))


class MemoryLimit:
    """Watches from the controller's process, which sees the names of the tests that run wherever they run."""

    def __init__(self, limit: int = LIMIT, measure: Callable[[], int] | None = None) -> None:
        self.limit = limit
        self.measure = measure or (lambda: tree_memory(psutil.Process(), limit))
        self.peak = 0
        self.at_peak: tuple[str, ...] = ()
        self._running: dict[str, None] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def look(self) -> None:
        """Measure once."""
        taken = self.measure()
        if taken > self.peak:
            self.peak, self.at_peak = taken, tuple(self._running) or self.at_peak

    def _watch(self) -> None:
        while not self._ended.wait(EVERY):
            self.look()

    def pytest_sessionstart(self) -> None:
        self._thread.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._running[nodeid] = None

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._running.pop(nodeid, None)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        self._ended.set()
        self.look()
        if self.peak > self.limit and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        lines = report(self.peak, self.limit, self.at_peak)
        for line in lines:
            terminalreporter.write_line(line, red=self.peak > self.limit)


def report(peak: int, limit: int, running: Iterable[str]) -> list[str]:
    """What a run's end says of its memory."""
    said = f"{peak / 2**30:.1f} GB of memory at most, of {limit / 2**30:.1f} GB allowed"
    if peak <= limit:
        return [said]
    return [f"FAILED: the run took {said}, while these ran:", *(f"  {name}" for name in running)]
