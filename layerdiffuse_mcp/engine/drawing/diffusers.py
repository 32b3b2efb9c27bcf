"""The drawer of families that have a diffusers pipeline: plans to layers, by that pipeline.

    [layers] = draw([plan], model, Pictures(), meter, show)

What a pipeline has to be brought is brought here: noise that is a function of the seed alone, the same on every device
and in a batch; progress, and with it the chance to stop between steps (within one the networks ask, see
`cancellation.py`); previews. Where its networks are is up to `Components`. It hands back latents, which the family's
codec decodes a layer at a time.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from layerdiffuse_mcp.api.detail import Box
from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.engine.drawing.apart import taken_apart
from layerdiffuse_mcp.engine.pipeline.batch import Result, batches, noise_source, padded, results_of
from layerdiffuse_mcp.engine.pipeline.previews import Show
from layerdiffuse_mcp.engine.pipeline.progress import DECODED_VIEW, DENOISING, NETWORK_STEP, Meter
from layerdiffuse_mcp.engine.sampling.noise import BatchNoise
from layerdiffuse_mcp.engine.transparency.codec import codec_of
from layerdiffuse_mcp.engine.types import LayerImage, Pictures, PipelineModel
from layerdiffuse_mcp.errors import InvalidRequest, ModelError
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.images.alpha import Bytes


def draw(
    plans: Sequence[DrawPlan], model: PipelineModel, pictures: Pictures, meter: Meter, show: Show
) -> list[list[LayerImage]]:
    """As `drawers.Drawer`; results share a batch where their texts are the same, for a pipeline may pad others.

    Raises:
        InvalidRequest: the plan has several stages, or a picture to edit or mask that the pipeline does not take.
        ModelError: the numbers overflowed.
        Cancelled: the meter's callback stopped the run.
    """
    if len(plans[0].stages) > 1 or (pictures.edit and pictures.edit.masks):
        raise InvalidRequest(f"{model.spec.title} models draw in one stage and all of a picture. Leave mask out.")
    results, plan = results_of(plans), padded(plans[0], model.latent)
    pixels = (model.noise_shape(plan)[0] + plan.reads) * plan.width * plan.height
    times = sum(model.decoded(plan) ** level for level in range(plan.depth))
    views = model.decoded(plan) * codec_of(model).views
    meter.expect(len(results) * times * (model.calls(plan) * NETWORK_STEP + views * DECODED_VIEW))
    model.use_layer(plan.stages[0])
    layers: dict[int, list[LayerImage]] = {}
    at_once = max(1, min(model.spec.batch_limit, model.pixels_at_once // pixels))
    for batch in batches(results, lambda plan: (plan.prompt, plan.negative_prompt), at_once):
        model.batch = len(batch)
        drawn = _drawn(batch, model, pictures, meter, show)
        for result, made in zip(batch, drawn, strict=True):
            if METHODS[plan.stages[0].method].takes_apart:
                again = partial(_drawn_once, result, model, meter=meter, show=show)
                made = taken_apart(made, again, pictures.layers, plan.depth)
            layers[id(result)] = made
    ordered = iter(results)
    return [[layer for _ in range(plan.count) for layer in layers[id(next(ordered))]] for plan in plans]


def _drawn(
    batch: Sequence[Result], model: PipelineModel, pictures: Pictures, meter: Meter, show: Show
) -> list[list[LayerImage]]:
    """The layers of each result of a batch."""
    latents = _denoise(batch, model, pictures, meter, show)
    count = len(batch) * model.decoded(batch[0].plan) * codec_of(model).views
    views = meter.steps("decoding", count, DECODED_VIEW)
    return [_decode(result, latent, model, views.next) for result, latent in zip(batch, latents, strict=True)]


def _drawn_once(result: Result, model: PipelineModel, pictures: Pictures, meter: Meter, show: Show) -> list[LayerImage]:
    return _drawn([result], model, pictures, meter, show)[0]


def _denoise(batch: Sequence[Result], model: PipelineModel, pictures: Pictures, meter: Meter, show: Show) -> Tensor:
    """The latents of a batch, (B, frames, C, h, w)."""
    plan, pipeline = padded(batch[0].plan, model.latent), model.pipeline
    shape = model.noise_shape(plan)
    seeds = [result.seed for result in batch]
    dtype = getattr(pipeline, model.spec.denoiser).dtype
    start = BatchNoise(seeds, shape, noise_source(plan), pipeline.device, dtype).initial()
    if pictures.edit is not None:
        meter.report("encoding")
        start = model.redrawn(start, partial(codec_of(model).encode, pictures.edit.images[0]), plan)
    steps = meter.steps(DENOISING, model.calls(plan), NETWORK_STEP * len(batch))

    def on_step_end(_pipeline: Any, _step: int, _timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        file = None
        if model.latent.rgb_factors:
            file = show(model.unpack(tensors["latents"], plan).flatten(0, 1), shape[0])
        steps.next(note=f"preview {file}" if file else "")
        return {}

    texts = [result.plan.prompt for result in batch], [result.plan.negative_prompt for result in batch]
    with torch.inference_mode():
        latents = model.run(
            **model.arguments(plan, *texts, pictures),
            latents=model.pack(start),
            generator=[_generator(seed, shape) for seed in seeds],
            callback_on_step_end=on_step_end,
            callback_on_step_end_tensor_inputs=["latents"],
            output_type="latent",
            return_dict=False,
        )
        unpacked = model.unpack(latents, plan)
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
        for order, one in enumerate(model.layers(latents, plan))
    ]


def _within(pixels: Bytes, box: Box) -> Bytes:
    """What a layer's box holds of its decoded picture, whose sides are multiples of the latent's downscale."""
    left, top, right, bottom = box
    return pixels[: bottom - top, : right - left]
