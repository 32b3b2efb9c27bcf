"""How far a request is, reported in one place.

A run is a number of units of about equal time; whoever does work reports units done and a message,
and the meter turns that into `Progress`, adding the pace of repeated steps. The callback may raise to
stop the run, so every report is also a point where it can be cancelled.
"""

import itertools
import time
from collections.abc import Callable

from layerdiffuse_mcp.api.outcome import Progress

OnStep = Callable[[Progress], None]

DENOISING, REDRAWING = "denoising", "redrawing"
NETWORK_STEP = 1.0
DECODED_VIEW = 0.4
PREPARING = 0.05
"""Share of the whole that loading takes: how long it lasts is not known before the work is."""


class Meter:
    """Turns units of work into progress between `begin` and 1 that never falls; `reached` is what was reported last.

    `spent`: seconds by what like steps were counted as (`steps`).
    """

    def __init__(self, on_step: OnStep, begin: float = 0.0) -> None:
        self._on_step = on_step
        self._begin = self.reached = begin
        self._total = 0.0
        self._done = 0.0
        self.spent: dict[str, float] = {}

    def expect(self, units: float) -> None:
        """Announce work, before any of it is done."""
        self._total += units

    def report(self, message: str) -> None:
        """Report what is being done, without any unit finished."""
        done = PREPARING + (1 - PREPARING) * self._done / self._total if self._total else 0.0
        self.reached = min(1.0, self._begin + (1 - self._begin) * done)
        self._on_step(Progress(fraction=self.reached, message=message))

    def done(self, units: float, message: str) -> None:
        """Report finished units."""
        self._done += units
        self.report(message)

    def steps(self, what: str, total: int, unit: float = NETWORK_STEP) -> "Steps":
        """A counter for `total` like steps, which tells their pace and the time that is left."""
        return Steps(self, what, total, unit)

    def tiles(self, what: str, total: int) -> Callable[[], None]:
        """Reports each of `total` tiles, of which there may be several rounds, without any unit finished."""
        numbers = itertools.cycle(range(1, total + 1))
        return lambda: self.report(f"{what}, tile {next(numbers)} of {total}") if total > 1 else None


class Steps:
    """Counts like steps: "denoising 7/20, 1.3 s a step, about 17 s left"."""

    def __init__(self, meter: Meter, what: str, total: int, unit: float) -> None:
        self._meter, self._what, self._total, self._unit = meter, what, total, unit
        self._begun = time.monotonic()
        self._before = meter.spent.get(what, 0.0)
        self._count = 0

    def next(self, count: int = 1, note: str = "") -> None:
        """`count` further steps are done; `note` ends the message."""
        self._count += count
        spent = time.monotonic() - self._begun
        self._meter.spent[self._what] = self._before + spent
        pace = spent / self._count
        left = pace * (self._total - self._count)
        message = f"{self._what} {self._count}/{self._total}"
        if pace >= 0.05:
            message += f", {pace:.1f} s a step, about {left:.0f} s left"
        self._meter.done(self._unit * count, f"{message}, {note}" if note else message)
