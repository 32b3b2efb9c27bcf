"""Step 4 of a stage: the sampler's loop, with the method's file on the denoiser.

latents = denoise(stage, method, model, prompts, condition, start, tiles, ...)
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from layerdiffuse_mcp.api.choices import SAMPLERS
from layerdiffuse_mcp.api.detail import Box
from layerdiffuse_mcp.api.requests import Stage
from layerdiffuse_mcp.engine.device.threads import for_denoiser
from layerdiffuse_mcp.engine.layers.adapters import ADAPTERS
from layerdiffuse_mcp.engine.layers.controlnet import Controls, Followed
from layerdiffuse_mcp.engine.models.networks import Networks
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.pipeline.latents import Start
from layerdiffuse_mcp.engine.pipeline.prompts import Prompts
from layerdiffuse_mcp.engine.sampling.denoiser import Denoiser
from layerdiffuse_mcp.engine.sampling.samplers import sample
from layerdiffuse_mcp.engine.sampling.tiles import OnTile, Tiles, tiled
from layerdiffuse_mcp.families.spec import LayerMethod

OnDenoised = Callable[[int, int, Tensor, Tensor], None]
"""`on_step(step, total, x, denoised)`, after each step; may raise to stop."""


def denoise(
    stage: Stage,
    method: LayerMethod,
    model: StableDiffusion,
    prompts: Prompts,
    condition: Tensor | None,
    start: Start,
    tiles: Tiles,
    asked: Collection[Box],
    pixels: int,
    on_step: OnDenoised,
    on_tile: OnTile,
    followed: Sequence[Followed] = (),
) -> Tensor:
    """The sampled latents (B, C, h, w), float32, rows (image, frame).

    condition: of `LayerAdapter.condition`. asked: the tiles in which something is drawn. pixels: that the network sees
    at once, of all pictures of the batch. followed: what ControlNets look at.
    """
    adapter, unet, cell = ADAPTERS[method.adapter], model.network(), model.latent.downscale
    positive, negative = prompts.positive, prompts.negative
    if condition is not None:
        conditioned = partial(adapter.conditioned, condition=condition)
        negative, *positive = (timed.changed(conditioned) for timed in (negative, *positive))
    applied = adapter.applied(model, Networks.of(unet), method, stage.layer_weight, condition)
    controls = Controls(model, followed, method, start.levels.steps)

    def on_stepped(*step: Any) -> None:
        controls.next()
        on_step(*step)

    with applied as layered, torch.inference_mode():
        networks = controls.on(layered)
        denoiser = Denoiser(
            tiled(networks.layered, tiles, asked, cell, on_tile),
            model.sigmas,
            positive,
            negative,
            stage.guidance_scale,
            prediction=model.prediction,
            base_network=tiled(networks.base, tiles, asked, cell, on_tile),
            stop_sigma=model.sigmas.percent_to_sigma(stage.stop_at) if stage.stop_at < 1 else None,
            batch_cond=pixels <= model.pixels_at_once,
            inpainting=start.inpainting,
        )
        with for_denoiser(model.components.parameters, pixels, model.placement.device):
            latents = sample(SAMPLERS[stage.sampler], denoiser, start.levels, start.noise, on_stepped, start.latent)
    return latents if start.inpainting is None else start.inpainting.keep(latents)
