"""The end of the server's process: in order if that goes quickly, and in any case soon.

    ending = Ending()
    ending.at_signals(stop)   # the first SIGINT or SIGTERM calls `stop`, a second one ends the process
    ...
    ending.begin()            # the client is gone: whatever happens now, the process ends within GRACE seconds

A thread that computes or a pipe that nobody reads cannot be interrupted, only left behind.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

GRACE = 3.0
"""Seconds that putting everything away may take."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Ending:
    """Makes sure that this process and those it has started end."""

    def __init__(self) -> None:
        self.status = 0
        self._begun = False

    def begin(self, status: int = 0, within: float = GRACE) -> None:
        """End the process with this status within so many seconds from the first call; it may well end before."""
        if not self._begun:
            self._begun, self.status = True, status
            threading.Thread(target=self._wait, args=[within], name="end of the process", daemon=True).start()

    def signalled(self, number: int, within: float = GRACE) -> None:
        """Note a signal; the second one, or one during the end, does not return."""
        if self._begun:
            self.now(128 + number)
        self.begin(128 + number, within)

    def now(self, status: int | None = None) -> NoReturn:
        """End the process and those it has started at once."""
        end_children()
        os._exit(self.status if status is None else status)

    def at_signals(self, stop: Callable[[], object]) -> None:
        """Have the first signal call `stop`, in the main thread between any two steps of the program.

        The handlers stay: a signal that comes while the interpreter ends is a second one.
        """

        def handle(number: int, _: FrameType | None) -> None:
            self.signalled(number)
            stop()

        for number in SIGNALS:
            signal.signal(number, handle)

    def _wait(self, within: float) -> None:
        time.sleep(within)
        self.now()


def end_children() -> None:
    """Kill every process that this one has started, and those that they have."""
    import psutil

    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
