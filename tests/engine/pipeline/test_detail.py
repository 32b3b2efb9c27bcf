"""What is redrawn larger in a batch is what would be redrawn of each picture alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.api.requests import GenerateRequest, validated
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.pipeline.batch import Result
from layerdiffuse_mcp.engine.pipeline.detail import redrawings
from layerdiffuse_mcp.engine.pipeline.pipeline import draw_stage
from layerdiffuse_mcp.engine.pipeline.progress import Meter
from layerdiffuse_mcp.engine.types import Pictures
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.images.alpha import Bytes
from layerdiffuse_mcp.images.fitting import enlarged
from tests.saving import Engine
from tests.tasks import plan_of

LARGE = 96, 96
CUT = {"width": 64, "height": 64, "overlap": 32}
FIELDS = {"prompt": "a cup", "width": 64, "height": 64, "fit": "as_is", "steps": 1}


def square(place: slice) -> Bytes:
    """What is visible in one corner alone, with hidden colour everywhere else."""
    made = np.full((64, 64, 4), (0, 255, 0, 0), np.uint8)
    made[place, place] = 200, 40, 40, 255
    return made


def redrawn(model: StableDiffusion, plan: DrawPlan, drawn: Mapping[int, Bytes]) -> list[Any]:
    """The pictures that were drawn by seed, redrawn larger as one batch."""
    [stage] = plan.stages
    [edit] = redrawings(plan, [[picture] for picture in drawn.values()], (), model.latent)
    batch = [Result(plan, seed) for seed in drawn]
    made = draw_stage(
        stage, model, batch, {}, edit, Pictures(), None, Meter(lambda _: None), lambda _denoised, _frames: None
    )
    return [one.pixels.astype(int) for one in made]


def test_each_picture_of_a_batch_is_redrawn_where_it_is_visible_itself(engine: Engine) -> None:
    detail = {"scale": 1.5, "strength": 0.9, "tiling": CUT}
    request = validated(GenerateRequest, {**FIELDS, "detail": detail})
    plan = plan_of(request, "sdxl", 64, model="tiny-sdxl").as_detailed
    assert plan is not None
    model: Any = engine._manager.get(catalog.find("tiny-sdxl", engine._settings), lambda _: None)
    drawn = {5: square(slice(0, 12)), 6: square(slice(52, 64)), 7: square(slice(0))}
    together = redrawn(model, plan, drawn)
    for (seed, picture), shared in zip(drawn.items(), together, strict=True):
        [alone] = redrawn(model, plan, {seed: picture})
        assert np.abs(shared - alone).max() <= 1
    first, second, empty = together
    assert np.array_equal(first[48:], enlarged(drawn[5], LARGE, LARGE)[48:])
    assert np.array_equal(second[:48], enlarged(drawn[6], LARGE, LARGE)[:48])
    assert np.array_equal(empty, enlarged(drawn[7], LARGE, LARGE))
    assert not np.array_equal(first[:48], enlarged(drawn[5], LARGE, LARGE)[:48])
