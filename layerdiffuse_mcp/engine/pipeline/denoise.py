"""Step 4 of a stage: the sampler's loop, with the method's file on the denoiser.

latents = denoise(stage, method, model, prompts, condition, start, pixels, on_step)
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from layerdiffuse_mcp.api.choices import SAMPLERS
from layerdiffuse_mcp.api.requests import Stage
from layerdiffuse_mcp.engine.device.threads import for_denoiser
from layerdiffuse_mcp.engine.layers.adapters import ADAPTERS
from layerdiffuse_mcp.engine.models.networks import Networks
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.pipeline.latents import Start
from layerdiffuse_mcp.engine.pipeline.prompts import Prompts
from layerdiffuse_mcp.engine.sampling.denoiser import Denoiser
from layerdiffuse_mcp.engine.sampling.samplers import sample
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
    pixels: int,
    on_step: OnDenoised,
) -> Tensor:
    """The sampled latents (B, C, h, w), float32, rows (image, frame).

    condition: of `LayerAdapter.condition`. pixels: of all pictures of the batch.
    """
    adapter, unet = ADAPTERS[method.adapter], model.network()
    positive, negative = prompts.positive, prompts.negative
    if condition is not None:
        conditioned = partial(adapter.conditioned, condition=condition)
        negative, *positive = (timed.changed(conditioned) for timed in (negative, *positive))
    applied = adapter.applied(model, Networks(unet, unet), method, stage.layer_weight, condition)
    with applied as networks, torch.inference_mode():
        denoiser = Denoiser(
            networks.layered,
            model.sigmas,
            positive,
            negative,
            stage.guidance_scale,
            prediction=model.prediction,
            base_network=networks.base,
            stop_sigma=model.sigmas.percent_to_sigma(stage.stop_at) if stage.stop_at < 1 else None,
            batch_cond=pixels <= model.pixels_at_once,
            inpainting=start.inpainting,
        )
        with for_denoiser(model.components.parameters, pixels, model.placement.device):
            latents = sample(SAMPLERS[stage.sampler], denoiser, start.levels, start.noise, on_step, start.latent)
    return latents if start.inpainting is None else start.inpainting.keep(latents)
