"""A small drawing by Euler steps, ours and that of diffusers' own pipelines, to compare what is added to both."""

from typing import Any, cast

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler
from torch import Tensor

from layerdiffuse_mcp.api.choices import SAMPLERS
from layerdiffuse_mcp.api.requests import Stage
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.pipeline.denoise import denoise
from layerdiffuse_mcp.engine.pipeline.latents import Start
from layerdiffuse_mcp.engine.pipeline.prompts import Prompts
from layerdiffuse_mcp.engine.sampling.noise import BatchNoise
from layerdiffuse_mcp.engine.sampling.schedules import plan
from layerdiffuse_mcp.engine.sampling.tiles import Tiles
from layerdiffuse_mcp.engine.text.clip_embeddings import sdxl_vector
from layerdiffuse_mcp.engine.types import Conditioning, Timed
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.families.spec import LayerMethod
from tests.narrow import UNETS

SIZE, STEPS, GUIDANCE = 64, 4, 5.0
SIZES = 6 * 256
"""Numbers of SDXL's vector that tell the picture's size."""
SD15, SDXL = METHODS["layer_sd15_joint"], METHODS["layer_xl_transparent_attn"]


def texts(family: str) -> tuple[Conditioning, Conditioning]:
    """The positive and the negative prompt, as the family embeds them."""
    torch.manual_seed(3)
    width, vector = UNETS[family]["cross_attention_dim"], UNETS[family].get("projection_class_embeddings_input_dim")

    def made() -> Conditioning:
        whole = None if vector is None else sdxl_vector(torch.randn(1, vector - SIZES), SIZE, SIZE)
        return Conditioning(torch.randn(1, 7, width), whole)

    return made(), made()


def drawn(model: StableDiffusion, method: LayerMethod, stop_at: float, **added: Any) -> tuple[Tensor, Tensor]:
    """What sampling begins from, and its latents, with what is `added` to `denoise`."""
    positive, negative = texts(model.spec.id)
    stage = Stage(
        method=method.id, sampler="Euler", schedule="Uniform", steps=STEPS, guidance_scale=GUIDANCE, stop_at=stop_at
    )
    levels = plan(SAMPLERS["Euler"], "Uniform", STEPS, model.sigmas)
    seeds, shape = [*range(7, 7 + method.frames)], model.latent.shape(SIZE, SIZE)
    latents = denoise(
        stage,
        method,
        model,
        Prompts((Timed(((0, positive),)),), Timed(((0, negative),))),
        None,
        Start(BatchNoise(seeds, shape, "cpu"), levels),
        Tiles.of((SIZE, SIZE), None),
        (),
        SIZE * SIZE * method.frames,
        lambda *_: None,
        lambda: None,
        **added,
    )
    return levels.start(BatchNoise(seeds, shape, "cpu").initial()), latents


def parts(family: str) -> dict[str, Any]:
    """What a pipeline is made of beside its UNet: no text encoders, an autoencoder that nothing asks."""
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="linspace",
        steps_offset=1,  # which a pipeline asks for and this spacing does not heed
    )
    scheduler.set_timesteps(STEPS)
    absent = ("text_encoder", "tokenizer", *(("text_encoder_2", "tokenizer_2") if family == "sdxl" else ()))
    vae = AutoencoderKL(
        block_out_channels=(4,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=1,
        latent_channels=4,
    )
    return {"vae": vae, "scheduler": scheduler, **dict.fromkeys(absent)}


def latents_of(pipeline: Any, family: str, start: Tensor, **added: Any) -> Tensor:
    """A pipeline's latents of the same prompts from the same start, with what is `added` to its call."""
    positive, negative = texts(family)
    given: dict[str, Any] = {"prompt_embeds": positive.context, "negative_prompt_embeds": negative.context}
    if family == "sdxl":
        given["pooled_prompt_embeds"] = cast(Tensor, positive.vector)[:, :-SIZES]
        given["negative_pooled_prompt_embeds"] = cast(Tensor, negative.vector)[:, :-SIZES]
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        latents=start / pipeline.scheduler.init_noise_sigma,
        num_images_per_prompt=len(start),
        output_type="latent",
        width=SIZE,
        height=SIZE,
        **given,
        **added,
    ).images


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Sampling begins at 14.6 times unit noise, in float32."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=5e-4)
