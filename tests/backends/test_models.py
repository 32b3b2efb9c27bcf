"""The models of a worker process, as the jobs that use them see them."""

import anyio
import pytest

from layerdiffuse_mcp.api.outcome import Outcome
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.jobs.planner import plan
from layerdiffuse_mcp.settings import Settings
from tests.narrow import write_models

pytestmark = pytest.mark.anyio


async def test_requests_at_once_for_one_model_load_it_once(settings: Settings):
    write_models(settings.models_dir, ("sd15",))
    settings = settings.model_copy(update={"device": "cpu"})
    backend = LocalBackend(settings)
    messages: list[str] = []
    outcomes: list[Outcome] = []

    async def draw(seed: int) -> None:
        request = GenerateRequest(prompt="a cup", model="tiny-sd15", steps=1, seed=seed)
        [task] = plan(request, settings).tasks
        outcomes.append(await backend.run(task, {}, lambda step: messages.append(step.message)))

    try:
        async with anyio.create_task_group() as tasks:
            for seed in (1, 2):
                tasks.start_soon(draw, seed)
        loaded = backend.state()[0].engine["loaded"]
    finally:
        await backend.close()
    assert len(outcomes) == 2
    assert messages.count("loading tiny-sd15") == 1
    assert [model["model"] for model in loaded] == ["tiny-sd15"]
