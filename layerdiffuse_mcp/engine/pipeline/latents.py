"""Step 3 of a stage: the noise of a batch, the levels it is removed at, and the picture to edit as a latent.

start = prepare(stage, method, model, batch, edit)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from layerdiffuse_mcp.api.choices import SAMPLERS
from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.api.requests import Stage
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.pipeline.batch import Result, drawn_size, noise_source
from layerdiffuse_mcp.engine.pipeline.conditions import mask_latent
from layerdiffuse_mcp.engine.sampling.denoiser import Inpainting
from layerdiffuse_mcp.engine.sampling.noise import BatchNoise
from layerdiffuse_mcp.engine.sampling.schedules import Plan
from layerdiffuse_mcp.engine.sampling.schedules import plan as levels
from layerdiffuse_mcp.engine.transparency.codec import codec_of
from layerdiffuse_mcp.engine.types import Edit
from layerdiffuse_mcp.families.spec import LayerMethod


@dataclass(frozen=True, eq=False)
class Start:
    """What sampling begins from. latent: of the picture to edit (1, C, h, w), as sampled; None without one."""

    noise: BatchNoise
    levels: Plan
    latent: Tensor | None = None
    inpainting: Inpainting | None = None


def prepare(
    stage: Stage, method: LayerMethod, model: StableDiffusion, batch: Sequence[Result], edit: Edit | None
) -> Start:
    """The start of a batch: a row for each picture (image, frame), whose seed is the result's plus the frame."""
    plan = batch[0].plan
    seeds = [result.seed + frame for result in batch for frame in range(method.frames)]
    shape = model.latent.shape(*drawn_size(plan, model.latent))
    noise = BatchNoise(seeds, shape, noise_source(plan), model.placement.device)
    run = stage_levels(stage, plan, model)
    if edit is None:
        return Start(noise, run)
    latent = codec_of(model).encode(edit.image).to(noise.device)
    if edit.mask is None:
        return Start(noise, run, latent)
    mask = mask_latent(edit.mask, model.latent.downscale).to(noise.device)
    return Start(noise, run, latent, Inpainting.of(latent, mask, noise))


def stage_levels(stage: Stage, plan: DrawPlan, model: StableDiffusion) -> Plan:
    """The noise levels of a stage; an edit begins further down, by the plan's strength."""
    strength = None if plan.image is None else plan.strength
    return levels(SAMPLERS[stage.sampler], stage.schedule, stage.steps, model.sigmas, strength)
