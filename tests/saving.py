"""The engine as the queue and the command line use it: planned first, and on disk when `run` returns."""

from collections.abc import Callable, Sequence
from pathlib import Path

from layerdiffuse_mcp.api.outcome import Outcome
from layerdiffuse_mcp.api.plan import DrawPlan, GroupPlan, Inputs, Planned, Task
from layerdiffuse_mcp.api.requests import GenerateRequest, Request
from layerdiffuse_mcp.engine import engine
from layerdiffuse_mcp.engine.pipeline.progress import OnStep
from layerdiffuse_mcp.hub.download import prepare_all
from layerdiffuse_mcp.images.read import levels_apart
from layerdiffuse_mcp.jobs.planner import plan
from layerdiffuse_mcp.outputs.writer import saved
from layerdiffuse_mcp.settings import Settings


def group_of(requests: Sequence[GenerateRequest], settings: Settings) -> Planned:
    """Requests that are alike, as one task."""
    plans = [plan(request, settings) for request in requests]
    tasks = tuple(task for one in plans for task in one.tasks if isinstance(task, DrawPlan))
    return Planned((GroupPlan(plans=tasks),), plans[0].inputs)


class Engine:
    """Takes requests, and groups of them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engine = engine.Engine(settings)
        self._manager = self._engine._manager
        self.status, self.unload, self.close = self._engine.status, self._engine.unload, self._engine.close

    def run(
        self,
        request: Request | Sequence[GenerateRequest],
        on_step: OnStep = lambda _: None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Outcome:
        outcome = self.drawn(request, on_step, cancelled)
        parts = tuple(saved(part, self._settings.output) for part in outcome.parts)
        return saved(outcome.model_copy(update={"parts": parts}), self._settings.output)

    def drawn(
        self,
        request: Request | Sequence[GenerateRequest],
        on_step: OnStep = lambda _: None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Outcome:
        """What the engine hands over, not on disk yet."""
        alone = not isinstance(request, Sequence)
        planned = plan(request, self._settings) if alone else group_of(request, self._settings)
        prepare_all(planned.downloads, self._settings, on_step)
        if not planned.tasks:
            return Outcome(model=planned.downloads[-1].model)
        [task] = planned.tasks
        return self.do(task, planned.inputs, on_step, cancelled)

    def do(self, task: Task, inputs: Inputs, on_step: OnStep, cancelled: Callable[[], bool] | None = None) -> Outcome:
        """A task as it is."""
        return self._engine.run(task, inputs, on_step, cancelled)


def same_pixels(first: Path, second: Path) -> bool:
    """Whether two picture files hold the same RGBA pixels; colour below alpha 0 counts too."""
    return levels_apart(first, second) == 0
