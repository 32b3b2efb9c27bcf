"""How long drawings take on this machine: seconds a megapixel and step, kept by device and model.

    paces = Paces()
    paces.seconds(planned.tasks, "cpu")     # 14.2, or None as long as this model has drawn nothing here
    paces.learn(task, outcome)              # once it is drawn; reads and writes a file

A pace is the mean of those seen, the latest counting most: of each drawing's time, decoding included, over its steps
times the megapixels that were drawn.
"""

import math
import os
import platform
import shutil
import threading
from collections.abc import Sequence
from typing import Any, cast

from layerdiffuse_mcp.api.outcome import Outcome
from layerdiffuse_mcp.api.plan import DrawPlan, GroupPlan, Task
from layerdiffuse_mcp.api.texts import calls_of, together
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.outputs.state import recall, remember
from layerdiffuse_mcp.settings import Settings

FILE = "paces.json"
CONTROLLED = 0.4
"""What a ControlNet takes of a network pass, by its share of the parameters."""
LATEST = 0.4
"""Share of the latest drawing in the mean."""
MOST_MODELS = 200
"""Models a device whose pace is kept, the latest."""


class Paces:
    """The paces that are known: {device: {model: seconds}}, those learnt last at the end."""

    def __init__(self) -> None:
        self._known = recall(FILE)
        self._writing = threading.Lock()

    def seconds(self, tasks: Sequence[Task], device: str | None = None) -> float | None:
        """How long drawings take together, without loading; None where one of them has no known pace.

        Without a `device`, that on which the model has drawn last.
        """
        each = [_seconds(work, self._pace(task.model, device)) for task in tasks for work, task in _drawings(task)]
        return math.fsum(known for known in each if known is not None) if each and None not in each else None

    def learn(self, task: Task, outcome: Outcome) -> None:
        """Take in how long a drawing took."""
        made = outcome.parts[0] if outcome.parts else outcome
        work = math.fsum(work for work, _ in _drawings(task))
        if not work or made.timings.draw <= 0 or not made.device:
            return
        with self._writing:
            self._known = _with(recall(FILE), made.device, made.model, made.timings.draw / work)
            remember(FILE, self._known)

    def _pace(self, model: str, device: str | None) -> float | None:
        devices: list[Any] = [self._known.get(device)] if device else [*reversed(self._known.values())]
        found = (_number(paces.get(model)) for paces in devices if isinstance(paces, dict))
        return next((pace for pace in found if pace is not None), None)


def megapixel_steps(plan: DrawPlan) -> float:
    """The work of a drawing: of each stage its network passes times the millions of pixels that they see.

    Two passes a call, one of them for the negative prompt, count as one; each prompt that AND joins adds half of that.
    """
    passes = (plan.as_drawn, plan.as_detailed)
    return math.fsum(_megapixel_steps(one) for one in passes if one is not None)


def _megapixel_steps(plan: DrawPlan) -> float:
    """Of a plan as drawers take it: what tiles have in common counts once for each."""
    tile, tiles = plan.tiling, 1
    if tile is not None:
        tiles = len(tile.boxes((plan.width, plan.height)))
    width, height = (tile.width, tile.height) if tile else (plan.width, plan.height)
    share = plan.strength if plan.redraws else 1.0
    passes = (1 + together(plan)) / 2
    return math.fsum(
        plan.count
        * (tiles * width * height / 1e6)
        * METHODS[stage.method].frames
        * math.ceil(stage.steps * share)
        * (calls_of(stage) // stage.steps)
        * passes
        * (1 + CONTROLLED * len(plan.control))
        for stage in plan.stages
    )


def likely_cpu(settings: Settings) -> bool:
    """Whether models run on a processor here, as far as can be told without torch: by the settings, else by what the
    drivers of graphics cards leave in a system.
    """
    if settings.device != "auto":
        return settings.device == "cpu"
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    return not (apple or shutil.which("nvidia-smi") or os.path.exists("/dev/kfd"))


def _with(known: dict[str, Any], device: str, model: str, latest: float) -> dict[str, Any]:
    """The paces with one more, which stands last."""
    paces = known.pop(device, None)
    paces = cast(dict[str, Any], paces) if isinstance(paces, dict) else {}
    before = _number(paces.pop(model, None))
    paces[model] = latest if before is None else before + LATEST * (latest - before)
    return known | {device: dict([*paces.items()][-MOST_MODELS:])}


def _drawings(task: Task) -> list[tuple[float, DrawPlan]]:
    """The drawings of a task, each with its work."""
    plans = task.plans if isinstance(task, GroupPlan) else (task,)
    return [(megapixel_steps(plan), plan) for plan in plans if isinstance(plan, DrawPlan)]


def _seconds(work: float, pace: float | None) -> float | None:
    return None if pace is None else work * pace


def _number(value: Any) -> float | None:
    """A pace of the file, if it is one."""
    return float(value) if isinstance(value, int | float) and 0 < value < math.inf else None
