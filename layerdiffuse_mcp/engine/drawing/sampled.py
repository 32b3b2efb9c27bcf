"""The drawer of the Stable Diffusion families: plans to layers, by our own pipeline.

    [layers] = draw([plan], model, Pictures(), meter, show)

A plan's stages run one after another; each hands its pictures to the next. With `detail` all of them run once more, on
what they drew, enlarged (`pipeline/detail.py`). Plans that differ only in
`plan.MAY_DIFFER` share their batches.
"""

import itertools
from collections.abc import Iterable, Sequence
from functools import partial

from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.engine.layers.ip_adapter import Referred
from layerdiffuse_mcp.engine.models.components import LoraUse
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.pipeline import prompts
from layerdiffuse_mcp.engine.pipeline.batch import Result, batches, passes, pixels_of_result, results_of, tiles_of
from layerdiffuse_mcp.engine.pipeline.detail import redrawings
from layerdiffuse_mcp.engine.pipeline.latents import stage_levels
from layerdiffuse_mcp.engine.pipeline.pipeline import draw_stage
from layerdiffuse_mcp.engine.pipeline.previews import Show
from layerdiffuse_mcp.engine.pipeline.progress import DECODED_VIEW, NETWORK_STEP, Meter
from layerdiffuse_mcp.engine.transparency.decode import VIEWS
from layerdiffuse_mcp.engine.types import Edit, LayerImage, Pictures
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.families.spec import Role
from layerdiffuse_mcp.images.alpha import Bytes


def draw(
    plans: Sequence[DrawPlan], model: StableDiffusion, pictures: Pictures, meter: Meter, show: Show
) -> list[list[LayerImage]]:
    """Run plans (see `plan.make_plan`); returns for each every layer of every result, results first.

    Args:
        plans: at least one; they differ at most in `plan.MAY_DIFFER` and name the same LoRAs.
        pictures: what all of them start from.
        show: sees each step.

    Raises:
        ModelError: a layer file is missing or does not fit, or the numbers overflowed.
        Cancelled: the meter's callback stopped the run.
    """
    use_loras(plans[0], model)
    model.use_inversions(plans[0].inversions)
    results = results_of(plans)
    plan = results[0].plan
    pixels = max(pixels_of_result(one, model.latent) for one in passes(plan))
    _expect(plan, len(results), model, meter)
    reference, seen = plan.reference, pictures.reference
    referred = None if reference is None or seen is None else Referred.of(model, reference, seen)
    layers: dict[int, list[LayerImage]] = {id(result): [] for result in results}
    at_once = max(1, model.pixels_at_once // pixels)
    for batch in batches(results, partial(prompts.shape, model=model), at_once):
        model.batch = len(batch)
        for result, drawn in zip(batch, _draw_batch(plan, model, batch, pictures, referred, meter, show), strict=True):
            layers[id(result)] += drawn
    ordered = iter(results)
    return [[layer for _ in range(plan.count) for layer in layers[id(next(ordered))]] for plan in plans]


def _draw_batch(
    plan: DrawPlan,
    model: StableDiffusion,
    batch: Sequence[Result],
    pictures: Pictures,
    referred: Referred | None,
    meter: Meter,
    show: Show,
) -> list[list[LayerImage]]:
    """All that is drawn for a batch; the layers of each result."""
    if plan.kept and pictures.edit is not None:
        layers, drawn = [], [[*pictures.edit.images] for _ in batch]
    else:
        layers = _draw_stages(plan, model, batch, pictures, itertools.repeat(pictures.edit), referred, meter, show)
        drawn = [[one.pixels for one in result] for result in layers]
    larger = plan.as_detailed
    if larger is None:
        return layers
    edits = redrawings(larger, drawn, pictures.edit and pictures.edit.mask, model.latent)
    again = [Result(result.plan.as_detailed or larger, result.seed) for result in batch]
    return _draw_stages(larger, model, again, pictures, edits, referred, meter, show)


def _draw_stages(
    plan: DrawPlan,
    model: StableDiffusion,
    batch: Sequence[Result],
    pictures: Pictures,
    edits: Iterable[Edit | None],
    referred: Referred | None,
    meter: Meter,
    show: Show,
) -> list[list[LayerImage]]:
    """All stages for a batch, each with what it redraws; the layers of each result."""
    layers: list[list[LayerImage]] = [[] for _ in batch]
    there: dict[Role, Sequence[Bytes]] = {role: [picture] * len(batch) for role, picture in pictures.layers.items()}
    for stage, edit in zip(plan.stages, edits, strict=False):
        outputs = METHODS[stage.method].outputs
        drawn = draw_stage(stage, model, batch, there, edit, pictures, referred, meter, show)
        there |= {role: [one.pixels for one in drawn if one.role == role] for role in outputs}
        for number, layer in enumerate(drawn):
            layers[number // len(outputs)].append(layer)
    return layers


def use_loras(plan: DrawPlan, model: StableDiffusion) -> None:
    """Put the LoRAs that a plan names on the model, and take others off."""
    paths = model.components.files.loras
    model.components.use_loras(tuple(LoraUse(paths[one.name], one.strength, one.text_strength) for one in plan.loras))


def _expect(plan: DrawPlan, count: int, model: StableDiffusion, meter: Meter) -> None:
    """Announce the work for `count` results of the plan."""
    for one in passes(plan):
        pictures = count * len(tiles_of(one, model.latent).boxes)
        for stage in one.stages:
            meter.expect(stage_levels(stage, one, model).steps * NETWORK_STEP * pictures)
            if METHODS[stage.method].transparent:
                meter.expect(len(VIEWS) * pictures * DECODED_VIEW)
