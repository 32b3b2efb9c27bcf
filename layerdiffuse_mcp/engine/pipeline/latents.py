"""Step 3 of a stage: the noise of a batch, the levels it is removed at, and what is redrawn as latents.

start = prepare(stage, method, model, batch, edit)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from layerdiffuse_mcp.api.choices import SAMPLERS
from layerdiffuse_mcp.api.detail import Tiling
from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.api.requests import Stage
from layerdiffuse_mcp.engine.layers.conditions import encode_tiled
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.pipeline.batch import Result, drawn_size, noise_source
from layerdiffuse_mcp.engine.pipeline.conditions import mask_latent
from layerdiffuse_mcp.engine.sampling.denoiser import Inpainting
from layerdiffuse_mcp.engine.sampling.latent_space import to_sampled
from layerdiffuse_mcp.engine.sampling.noise import BatchNoise
from layerdiffuse_mcp.engine.sampling.schedules import Plan
from layerdiffuse_mcp.engine.sampling.schedules import plan as levels
from layerdiffuse_mcp.engine.transparency.codec import codec_of
from layerdiffuse_mcp.engine.types import Edit
from layerdiffuse_mcp.families.spec import LayerMethod
from layerdiffuse_mcp.images.alpha import Bytes, to_float


@dataclass(frozen=True, eq=False)
class Start:
    """What sampling begins from. latent: of what is redrawn (1 or B, C, h, w), as sampled; None without it."""

    noise: BatchNoise
    levels: Plan
    latent: Tensor | None = None
    inpainting: Inpainting | None = None


def prepare(
    stage: Stage,
    method: LayerMethod,
    model: StableDiffusion,
    batch: Sequence[Result],
    edit: Edit | None,
    on_network: Callable[[], None] | None = None,
) -> Start:
    """The start of a batch: a row for each picture (image, frame), whose seed is the result's plus the frame.

    on_network: called whenever a network has encoded a picture, or a tile of it.
    """
    plan = batch[0].plan
    seeds = [result.seed + frame for result in batch for frame in range(method.frames)]
    shape = model.latent.shape(*drawn_size(plan, model.latent))
    noise = BatchNoise(seeds, shape, noise_source(plan), model.placement.device)
    run = stage_levels(stage, plan, model)
    if edit is None:
        return Start(noise, run)
    encoded = [_encoded(image, model, plan.tiling, on_network) for image in edit.images]
    latent = torch.cat(encoded).to(noise.device)
    if not edit.masks:
        return Start(noise, run, latent)
    mask = torch.cat([mask_latent(one, model.latent.downscale) for one in edit.masks]).to(noise.device)
    return Start(noise, run, latent, Inpainting.of(latent, mask, noise))


def _encoded(
    picture: Bytes, model: StableDiffusion, tiling: Tiling | None, on_network: Callable[[], None] | None
) -> Tensor:
    """A picture to redraw as sampled, (1, C, h, w): by the codec where it has alpha, else by the autoencoder."""
    if picture.shape[-1] == 4:
        return codec_of(model).encode(picture, on_network, tiling)
    mean, _ = encode_tiled(model, to_float(picture), tiling, on_network)
    return to_sampled(mean, model.latent)


def stage_levels(stage: Stage, plan: DrawPlan, model: StableDiffusion) -> Plan:
    """The noise levels of a stage; a redrawing begins further down, by the plan's strength."""
    strength = plan.strength if plan.redraws else None
    return levels(SAMPLERS[stage.sampler], stage.schedule, stage.steps, model.sigmas, strength)
