"""How long drawings take on this machine: seconds a megapixel, each step's and what is done once, by device and model.

    paces = Paces()
    paces.seconds(planned.tasks, "cpu")     # 14.2, or None as long as this model has drawn nothing here
    paces.learn(task, outcome)              # once it is drawn; reads and writes a file

A pace is of the drawings seen, the latest counting most: the time of their steps, over these times the megapixels that
were drawn, and the rest of their time, as decoding, over the megapixels alone.
"""

import math
import os
import platform
import shutil
import threading
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NamedTuple, cast

from pydantic import Field, TypeAdapter, ValidationError

from layerdiffuse_mcp.api.outcome import Outcome
from layerdiffuse_mcp.api.plan import DrawPlan, GroupPlan, Task
from layerdiffuse_mcp.api.texts import calls_of, together
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.outputs.state import recall, remember
from layerdiffuse_mcp.settings import Settings

FILE = "paces.json"
CONTROLLED = 0.4
"""What a ControlNet takes of a network pass, by its share of the parameters."""
FADED = 0.6
"""What a drawing counts once another has been seen."""
MOST_MODELS = 200
"""Models a device whose pace is kept, the latest."""


class Work(NamedTuple):
    """What drawings have to do in megapixels, times the steps and once."""

    steps: float
    once: float


class Pace(NamedTuple):
    """What drawings took, and their work: of the steps, and of what is done once."""

    step_seconds: Annotated[float, Field(gt=0, lt=math.inf)]
    steps: Annotated[float, Field(gt=0, lt=math.inf)]
    once_seconds: Annotated[float, Field(ge=0, lt=math.inf)]
    once: Annotated[float, Field(gt=0, lt=math.inf)]

    def seconds(self, work: Work) -> float:
        """How long other work takes."""
        return work.steps * self.step_seconds / self.steps + work.once * self.once_seconds / self.once


_PACE = TypeAdapter(Pace)


class Paces:
    """The paces that are known: {device: {model: Pace}}, those learnt last at the end."""

    def __init__(self) -> None:
        self._known = recall(FILE)
        self._writing = threading.Lock()

    def seconds(self, tasks: Sequence[Task], device: str | None = None) -> float | None:
        """How long drawings take together, without loading; None where one of them has no known pace.

        Without a `device`, that on which the model has drawn last.
        """
        each = [(work, self._pace(plan.model, device)) for task in tasks for work, plan in _drawings(task)]
        known = [pace.seconds(work) for work, pace in each if pace is not None]
        return math.fsum(known) if each and len(known) == len(each) else None

    def learn(self, task: Task, outcome: Outcome) -> None:
        """Take in how long a drawing took."""
        spent, work = outcome.timings, _sum(work for work, _ in _drawings(task))
        if not work.steps or spent.denoise <= 0 or not outcome.device:
            return
        pace = Pace(spent.denoise, work.steps, max(0.0, spent.draw - spent.denoise), work.once)
        with self._writing:
            self._known = _with(recall(FILE), outcome.device, outcome.model, pace)
            remember(FILE, self._known)

    def _pace(self, model: str, device: str | None) -> Pace | None:
        devices: list[Any] = [self._known.get(device)] if device else [*reversed(self._known.values())]
        found = (_known(paces.get(model)) for paces in devices if isinstance(paces, dict))
        return next((pace for pace in found if pace is not None), None)


def work_of(plan: DrawPlan) -> Work:
    """The work of a drawing: of each stage its network passes times the millions of pixels that they see, and those.

    Two passes a call, one of them for the negative prompt, count as one; each prompt that AND joins adds half of that.
    """
    passes = (None if plan.kept else plan.as_drawn, plan.as_detailed)
    return _sum(_work(one) for one in passes if one is not None)


def _work(plan: DrawPlan) -> Work:
    """Of a plan as drawers take it: what tiles have in common counts once for each."""
    tile, tiles = plan.tiling, 1
    if tile is not None:
        tiles = len(tile.boxes((plan.width, plan.height)))
    width, height = (tile.width, tile.height) if tile else (plan.width, plan.height)
    share = plan.strength if plan.redraws else 1.0
    passes = (1 + together(plan)) / 2
    seen = [plan.count * (tiles * width * height / 1e6) * METHODS[stage.method].frames for stage in plan.stages]
    steps = math.fsum(
        megapixels
        * math.ceil(stage.steps * share)
        * (calls_of(stage) // stage.steps)
        * passes
        * (1 + CONTROLLED * len(plan.control))
        for megapixels, stage in zip(seen, plan.stages, strict=True)
    )
    return Work(steps, math.fsum(seen))


def likely_cpu(settings: Settings) -> bool:
    """Whether models run on a processor here, as far as can be told without torch: by the settings, else by what the
    drivers of graphics cards leave in a system.
    """
    if settings.device != "auto":
        return settings.device == "cpu"
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    return not (apple or shutil.which("nvidia-smi") or os.path.exists("/dev/kfd"))


def _with(known: dict[str, Any], device: str, model: str, latest: Pace) -> dict[str, Any]:
    """The paces with one more, which stands last."""
    paces = known.pop(device, None)
    paces = cast(dict[str, Any], paces) if isinstance(paces, dict) else {}
    before = _known(paces.pop(model, None)) or (0.0,) * len(latest)
    paces[model] = [FADED * old + new for old, new in zip(before, latest, strict=True)]
    return known | {device: dict([*paces.items()][-MOST_MODELS:])}


def _drawings(task: Task) -> list[tuple[Work, DrawPlan]]:
    """The drawings of a task, each with its work."""
    plans = task.plans if isinstance(task, GroupPlan) else (task,)
    return [(work_of(plan), plan) for plan in plans if isinstance(plan, DrawPlan)]


def _sum(works: Iterable[Work]) -> Work:
    each = [*works]
    return Work(math.fsum(work.steps for work in each), math.fsum(work.once for work in each))


def _known(value: Any) -> Pace | None:
    """A pace of the file, if it is one."""
    try:
        return _PACE.validate_python(value)
    except ValidationError:
        return None
