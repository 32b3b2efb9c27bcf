"""The engine as the queue and the command line use it: what it made is on disk when `run` returns."""

from layerdiffuse_mcp.engine import engine
from layerdiffuse_mcp.engine.progress import OnStep
from layerdiffuse_mcp.outcome import Outcome
from layerdiffuse_mcp.outputs.writer import saved
from layerdiffuse_mcp.requests import Request


class Engine(engine.Engine):
    def run(self, request: Request, on_step: OnStep) -> Outcome:
        outcome = super().run(request, on_step)
        parts = tuple(saved(part, self._settings.output) for part in outcome.parts)
        return saved(outcome.model_copy(update={"parts": parts}), self._settings.output)
