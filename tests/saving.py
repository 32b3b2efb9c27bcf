"""The engine as the queue and the command line use it: what it made is on disk when `run` returns."""

from collections.abc import Callable
from pathlib import Path

from layerdiffuse_mcp.engine import engine
from layerdiffuse_mcp.engine.progress import OnStep
from layerdiffuse_mcp.images.read import levels_apart
from layerdiffuse_mcp.outcome import Outcome
from layerdiffuse_mcp.outputs.writer import saved
from layerdiffuse_mcp.requests import Request


class Engine(engine.Engine):
    def run(self, request: Request, on_step: OnStep, cancelled: Callable[[], bool] | None = None) -> Outcome:
        outcome = super().run(request, on_step, cancelled)
        parts = tuple(saved(part, self._settings.output) for part in outcome.parts)
        return saved(outcome.model_copy(update={"parts": parts}), self._settings.output)


def same_pixels(first: Path, second: Path) -> bool:
    """Whether two picture files hold the same RGBA pixels; colour below alpha 0 counts too."""
    return levels_apart(first, second) == 0
