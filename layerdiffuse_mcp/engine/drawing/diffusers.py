"""The drawer of families that have a diffusers pipeline: plans to layers, by that pipeline.

    [layers] = draw([plan], model, Pictures(), meter, show)

What a pipeline has to be brought is brought here: noise that is a function of the seed alone, the same on every device
and in a batch; progress, and with it the chance to stop between steps (within one the networks ask, see
`cancellation.py`); previews. Where its networks are is up to `Components`. It hands back latents, which the family's
codec decodes a layer at a time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from layerdiffuse_mcp.api.detail import Box
from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.engine.pipeline.batch import Result, batches, drawn_size, noise_source, results_of
from layerdiffuse_mcp.engine.pipeline.previews import Show
from layerdiffuse_mcp.engine.pipeline.progress import DECODED_VIEW, NETWORK_STEP, Meter
from layerdiffuse_mcp.engine.sampling.noise import BatchNoise
from layerdiffuse_mcp.engine.transparency.codec import codec_of
from layerdiffuse_mcp.engine.types import LayerImage, Pictures, PipelineModel
from layerdiffuse_mcp.errors import InvalidRequest, ModelError
from layerdiffuse_mcp.images.alpha import Bytes


def draw(
    plans: Sequence[DrawPlan], model: PipelineModel, pictures: Pictures, meter: Meter, show: Show
) -> list[list[LayerImage]]:
    """As `drawers.Drawer`; results share a batch where their texts are the same, for a pipeline may pad others.

    Raises:
        InvalidRequest: pictures are given, or the plan has stages, which a pipeline does not take.
        ModelError: the numbers overflowed.
        Cancelled: the meter's callback stopped the run.
    """
    if pictures.layers or pictures.edit or len(plans[0].stages) > 1:
        raise InvalidRequest(f"{model.spec.title} models draw from a prompt alone, in one stage. Leave pictures out.")
    results, plan = results_of(plans), plans[0]
    width, height = drawn_size(plan, model.latent)
    frames = model.noise_shape(width, height)[0]
    pixels = frames * width * height
    meter.expect(len(results) * (plan.stages[0].steps * NETWORK_STEP + frames * DECODED_VIEW))
    layers: dict[int, list[LayerImage]] = {}
    at_once = max(1, min(model.spec.batch_limit, model.pixels_at_once // pixels))
    for batch in batches(results, lambda plan: (plan.prompt, plan.negative_prompt), at_once):
        model.batch = len(batch), pixels
        latents = _denoise(batch, model, meter, show)
        views = meter.steps("decoding", len(batch) * frames, DECODED_VIEW)
        for result, latent in zip(batch, latents, strict=True):
            layers[id(result)] = _decode(result, latent, model, views.next)
    ordered = iter(results)
    return [[layer for _ in range(plan.count) for layer in layers[id(next(ordered))]] for plan in plans]


def _denoise(batch: Sequence[Result], model: PipelineModel, meter: Meter, show: Show) -> Tensor:
    """The latents of a batch, (B, frames, C, h, w)."""
    plan, pipeline = batch[0].plan, model.pipeline
    [stage] = plan.stages
    width, height = drawn_size(plan, model.latent)
    shape = model.noise_shape(width, height)
    seeds = [result.seed for result in batch]
    dtype = getattr(pipeline, model.spec.denoiser).dtype
    noise = BatchNoise(seeds, shape, noise_source(plan), pipeline.device, dtype).initial()
    steps = meter.steps("denoising", stage.steps, NETWORK_STEP * len(batch))

    def on_step_end(_pipeline: Any, _step: int, _timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        file = None
        if model.latent.rgb_factors:
            file = show(model.unpack(tensors["latents"], width, height).flatten(0, 1), shape[0])
        steps.next(note=f"preview {file}" if file else "")
        return {}

    texts = [result.plan.prompt for result in batch], [result.plan.negative_prompt for result in batch]
    with torch.inference_mode():
        latents = pipeline(
            **model.arguments(stage, *texts),
            width=width,
            height=height,
            latents=model.pack(noise),
            generator=[_generator(seed, shape) for seed in seeds],
            callback_on_step_end=on_step_end,
            callback_on_step_end_tensor_inputs=["latents"],
            output_type="latent",
            return_dict=False,
        )[0]
        unpacked = model.unpack(latents, width, height)
    if not unpacked.isfinite().all():
        raise ModelError(
            "The denoiser returned numbers that are not finite: they overflow in the current number format. "
            "Set LAYERDIFFUSE_DTYPE to bfloat16 or float32 and repeat the call."
        )
    return unpacked


def _generator(seed: int, shape: tuple[int, ...]) -> torch.Generator:
    """What a scheduler may draw further noise from. On the CPU, so it is the same on every device; and past the
    result's first draw, which would else be the start once more.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.randn(shape, generator=generator)
    return generator


def _decode(result: Result, latents: Tensor, model: PipelineModel, on_view: Callable[[int], None]) -> list[LayerImage]:
    """The layers of a result from the bottom up; one that fills it has the plan's size."""
    plan, codec = result.plan, codec_of(model)
    return [
        LayerImage(
            role=one.role,
            seed=result.seed,
            pixels=_within(codec.decode(one.latent, on_view), one.box or (0, 0, plan.width, plan.height)),
            latent=one.latent.float().cpu(),
            name=one.name,
            box=one.box,
            order=order,
        )
        for order, one in enumerate(model.layers(latents, plan.prompt))
    ]


def _within(pixels: Bytes, box: Box) -> Bytes:
    """What a layer's box holds of its decoded picture, whose sides are multiples of the latent's downscale."""
    left, top, right, bottom = box
    return pixels[: bottom - top, : right - left]
