"""An engine that takes requests, as the command line asks it: each is planned, then run."""

from collections.abc import Callable, Sequence

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.plan import DrawPlan, GroupPlan
from layerdiffuse_mcp.api.requests import GenerateRequest, Request
from layerdiffuse_mcp.engine.startup import load_engine
from layerdiffuse_mcp.jobs.planner import plan
from layerdiffuse_mcp.settings import Settings


class Engine:
    """The engine of these settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engine = load_engine()(settings)
        self.unload, self.status, self.close = self._engine.unload, self._engine.status, self._engine.close

    def run(
        self,
        request: Request | Sequence[GenerateRequest],
        report: Callable[[Progress], None],
        cancelled: Callable[[], bool] | None = None,
    ) -> Outcome:
        """A request, or several as one batch."""
        requests: Sequence[Request] = request if isinstance(request, Sequence) else [request]
        planned = [plan(one, self._settings) for one in requests]
        [task] = planned[0].tasks
        if isinstance(request, Sequence):
            task = GroupPlan(plans=tuple(task for one in planned for task in one.tasks if isinstance(task, DrawPlan)))
        return self._engine.run(task, planned[0].inputs, report, cancelled)
