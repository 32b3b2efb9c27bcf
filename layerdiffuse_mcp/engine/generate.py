"""The story of a generation: plan, prompts, pictures given, noise, denoising, decoding.

    [pictures] = generate([plan], model, given, meter, show)

A plan's stages run one after another; each hands its pictures to the next. Everything here works on
whole batches and knows no file: what comes back are arrays, what goes in are arrays. Plans that differ only in
`requests.MAY_DIFFER` share their batches.

What depends on the batch: the noise does not, on any device. Texts, the autoencoder and the transparent decoder work on
one picture at a time. The denoiser works on all of a batch, and its convolutions and smallest matrix products sum in an
order that the libraries choose by the number of rows: so pixels agree within 1 of 255, alone or in a batch, on one
device and version.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from layerdiffuse_mcp.choices import SAMPLERS, NoiseSource
from layerdiffuse_mcp.engine.conditions import control_picture, encode_condition, mask_latent, original_outside
from layerdiffuse_mcp.engine.emphasis import extract_loras
from layerdiffuse_mcp.engine.model import LoraUse, Model
from layerdiffuse_mcp.engine.previews import Show
from layerdiffuse_mcp.engine.progress import DECODED_VIEW, NETWORK_STEP, Meter
from layerdiffuse_mcp.engine.sampling.denoiser import Conditioning, Denoiser, Inpainting
from layerdiffuse_mcp.engine.sampling.noise import BatchNoise
from layerdiffuse_mcp.engine.sampling.samplers import sample
from layerdiffuse_mcp.engine.sampling.schedules import Plan
from layerdiffuse_mcp.engine.sampling.schedules import plan as levels
from layerdiffuse_mcp.engine.threads import for_denoiser
from layerdiffuse_mcp.engine.transparency import VIEWS, decode, decoder_latent, to_rgb8, to_rgba8, transparent_latent
from layerdiffuse_mcp.errors import ModelError
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.images.alpha import Bytes
from layerdiffuse_mcp.methods import METHODS, Method, Role
from layerdiffuse_mcp.plan import seeds
from layerdiffuse_mcp.requests import GenerateRequest, Stage

LATENT_FACTOR = 8

_Prompts = tuple[Conditioning, Conditioning, tuple[Tensor | None, ...]]


@dataclass(frozen=True)
class Drawn:
    """One layer of one result: `pixels` (H, W, 4) with alpha or (H, W, 3), uint8; `latent` (4, h, w) as sampled."""

    role: Role
    seed: int
    pixels: Bytes
    latent: Tensor


@dataclass(frozen=True)
class Given:
    """Pictures that a plan starts from, uint8 (H, W, 4), any size: by role, and the one to edit with its mask."""

    layers: Mapping[Role, Bytes] = field(default_factory=dict[Role, Bytes])
    image: Bytes | None = None
    mask: Bytes | None = None


@dataclass(frozen=True, eq=False)
class _Result:
    """One result of a plan, and its layers as far as they are drawn."""

    plan: GenerateRequest
    seed: int
    layers: list[Drawn] = field(default_factory=list[Drawn])


def generate(
    plans: Sequence[GenerateRequest], model: Model, given: Given, meter: Meter, show: Show
) -> list[list[Drawn]]:
    """Run plans (see `plan.resolve`); returns for each every layer of every result, results first.

    Args:
        plans: at least one; they differ at most in `requests.MAY_DIFFER` and name the same LoRAs.
        given: the pictures that all of them start from.
        show: sees each step.

    Raises:
        ModelError: a layer file is missing or does not fit, or the numbers overflowed.
        Cancelled: the meter's callback stopped the run.
    """
    plans = [_with_loras(plan, model) for plan in plans]
    results = [_Result(plan, seed) for plan in plans for seed in seeds(plan)]
    _announce(plans[0], len(results), model, meter)
    for batch in _batches(results, model):
        model.batch = len(batch), pixels_of_result(plans[0])
        known: dict[Role, list[Bytes]] = {role: [picture] * len(batch) for role, picture in given.layers.items()}
        for stage in _stages(plans[0]):
            outputs = METHODS[stage.method].outputs
            layers = _draw(stage, model, batch, known, given, meter, show)
            known |= {role: [one.pixels for one in layers if one.role == role] for role in outputs}
            for number, layer in enumerate(layers):
                batch[number // len(outputs)].layers.append(layer)
    return [[layer for result in results if result.plan is plan for layer in result.layers] for plan in plans]


def _draw(
    stage: Stage,
    model: Model,
    batch: Sequence[_Result],
    known: Mapping[Role, list[Bytes]],
    given: Given,
    meter: Meter,
    show: Show,
) -> list[Drawn]:
    """One stage for a batch of results: the layers of the first, then those of the second, ..."""
    plan, batch_seeds = batch[0].plan, [result.seed for result in batch]  # in what is used below all plans are alike
    method = METHODS[stage.method]
    width, height = draw_size(plan)
    device = model.placement.device

    # 1. prompts, and the LoRAs that they name
    positive, negative, own = _joined([_prompts(result.plan, method, model) for result in batch], method.frames)

    # 2. the pictures that steer: joined behind the latent (SDXL) or shown to the control encoder (SD1.5)
    control = None
    if method.inputs and method.family == "sd15":
        control = control_picture(known[method.inputs[0]][0], width, height, plan.resize_mode)
    elif method.inputs:
        pictures = [[known[role][index] for role in method.inputs] for index in range(len(batch))]
        concat = encode_condition(model, pictures, batch_seeds, width, height, plan.resize_mode, _source(plan))
        positive, negative = replace(positive, concat=concat), replace(negative, concat=concat)

    # 3. noise and its levels, and the picture to edit as a latent
    rows = [seed + frame for seed in batch_seeds for frame in range(method.frames)]
    noise = BatchNoise(rows, (4, height // LATENT_FACTOR, width // LATENT_FACTOR), _source(plan), device)
    start, inpainting = _start(plan, model, given, noise)
    sampler = SAMPLERS[stage.sampler]
    run = levels(sampler, stage.schedule, stage.steps, model.table, None if start is None else plan.strength)

    # 4. denoising
    steps = meter.steps("denoising", run.steps, NETWORK_STEP * len(batch))

    def on_step(_step: int, _total: int, _x: Tensor, denoised: Tensor) -> None:
        file = show(denoised, method.frames)
        steps.next(note=f"preview {file}" if file else "")

    with model.layered(stage, control, own) as networks, torch.inference_mode():
        denoiser = Denoiser(
            networks.layered,
            model.table,
            positive,
            negative,
            stage.guidance_scale,
            prediction=model.checkpoint.prediction,
            base_network=networks.base,
            stop_sigma=model.table.percent_to_sigma(stage.stop_at) if stage.stop_at < 1 else None,
            batch_cond=len(batch) * pixels_of_result(plan) <= model.pixels_at_once,
            inpainting=inpainting,
        )
        with for_denoiser(model.parameters, len(batch) * pixels_of_result(plan), device):
            latents = sample(sampler, denoiser, run, noise, on_step, start)
        if inpainting is not None:
            latents = inpainting.keep(latents)

    # 5. decoding: every frame to pixels, the transparent one on to RGBA
    return list(_decoded(plan, model, method, batch_seeds, latents, given, meter))


def _with_loras(plan: GenerateRequest, model: Model) -> GenerateRequest:
    """The plan without the `<lora:...>` tags of its prompts, which have been put on the model."""
    prompt, tags = extract_loras(plan.prompt)
    own: dict[Role, str] = {}
    for role, text in plan.layer_prompts.items():
        own[role], more = extract_loras(text)
        tags += more
    named = {tag.name: tag for tag in tags}.values()
    model.use_loras(
        tuple(LoraUse(catalog.lora(tag.name, model.settings), tag.strength, tag.text_strength) for tag in named)
    )
    return plan.model_copy(update={"prompt": prompt, "layer_prompts": own})


def _prompts(plan: GenerateRequest, method: Method, model: Model) -> _Prompts:
    """Positive and negative conditioning, and the embeddings of frames with a prompt of their own."""
    width, height = draw_size(plan)

    def embed(text: str, negative: bool = False) -> Conditioning:
        return model.embed(
            text,
            negative=negative,
            clip_skip=plan.clip_skip,
            emphasis=plan.emphasis,
            width=width,
            height=height,
        )

    texts = [join_prompts(plan.layer_prompts.get(role, ""), plan.prompt) for role in method.outputs]
    if method.frames == 1:
        return embed(texts[0]), embed(plan.negative_prompt, negative=True), ()
    own = tuple(
        embed(text).context if plan.layer_prompts.get(role) else None
        for role, text in zip(method.outputs, texts, strict=True)
    )
    return embed(plan.prompt), embed(plan.negative_prompt, negative=True), own


def _joined(prompts: Sequence[_Prompts], frames: int) -> _Prompts:
    """The prompts of a batch's results as one, with a row for each picture (image, frame) unless all are the same."""
    if all(one[0].context is prompts[0][0].context and one[1].context is prompts[0][1].context for one in prompts):
        return prompts[0]

    def rows(conditionings: Sequence[Conditioning]) -> Conditioning:
        vectors = [one.vector for one in conditionings if one.vector is not None]
        context = torch.cat([one.context for one in conditionings]).repeat_interleave(frames, 0)
        return Conditioning(context, torch.cat(vectors).repeat_interleave(frames, 0) if vectors else None)

    positive, negative, own = zip(*prompts, strict=True)
    texts = [[text for text in frame if text is not None] for frame in zip(*own, strict=True)]
    return rows(positive), rows(negative), tuple(torch.cat(frame) if frame else None for frame in texts)


def join_prompts(extra: str, prompt: str) -> str:
    """A layer's own prompt in front of the common one."""
    return ", ".join(part for part in (extra, prompt) if part)


def _start(
    plan: GenerateRequest, model: Model, given: Given, noise: BatchNoise
) -> tuple[Tensor | None, Inpainting | None]:
    """The latent that an edit starts from and what its mask protects."""
    if given.image is None:
        return None, None
    latent = transparent_latent(model.vae, model.encoder, given.image).to(noise.device)
    if given.mask is None:
        return latent, None
    return latent, Inpainting.of(latent, mask_latent(given.mask).to(noise.device), noise)


def _decoded(
    plan: GenerateRequest, model: Model, method: Method, batch: list[int], latents: Tensor, given: Given, meter: Meter
) -> Iterator[Drawn]:
    width, height = cast(int, plan.width), cast(int, plan.height)
    transparent = [role for role in method.outputs if role == method.transparent]
    views = meter.steps("decoding", len(VIEWS) * len(transparent) * len(batch), DECODED_VIEW)
    roles: list[tuple[int, Role]] = [(seed, role) for seed in batch for role in method.outputs]
    for latent, (seed, role) in zip(latents, roles, strict=True):
        if role == method.transparent:
            pixels = decode_rgba(model, latent, views.next)
            if given.image is not None and given.mask is not None:
                pixels = original_outside(given.mask, given.image, pixels)
        else:
            pixels = to_rgb8(decode_pixels(model, latent[None])[0])
        yield Drawn(role, seed, pixels[:height, :width], latent.float().cpu())


def decode_rgba(model: Model, latent: Tensor, on_view: Any = None) -> Bytes:
    """A sampled latent (4, h, w) as RGBA (8 h, 8 w, 4), uint8, straight alpha; `on_view()` is called eight times."""
    told = 0

    def tell(done: int, _: int) -> None:
        nonlocal told
        if on_view is not None:
            on_view(done - told)
        told = done

    pixel = decode_pixels(model, latent[None])
    scaled = decoder_latent(latent[None].to(pixel), model.checkpoint.scaling_factor)
    return to_rgba8(decode(model.decoder, pixel, scaled, on_view=tell))[0]


@torch.inference_mode()
def decode_pixels(model: Model, latents: Tensor) -> Tensor:
    """Sampled latents (B, 4, h, w) as the autoencoder's pictures (B, 3, 8 h, 8 w), 0..1, float32.

    Raises:
        ModelError: the autoencoder's numbers overflowed.
    """
    vae: Any = model.vae
    scaled = latents.to(device=vae.device, dtype=vae.dtype) / model.checkpoint.scaling_factor
    pixels = torch.cat([vae.decode(one[None], return_dict=False)[0].float() for one in scaled])
    if not pixels.isfinite().all():
        raise ModelError(
            "The autoencoder returned numbers that are not finite: they overflow in the current number format. "
            "Set LAYERDIFFUSE_DTYPE to bfloat16 or float32 and repeat the call."
        )
    return (pixels / 2 + 0.5).clamp(0, 1)


def draw_size(plan: GenerateRequest) -> tuple[int, int]:
    """Width and height that are drawn: the next multiples of 8, cropped again at the right and the bottom."""
    width, height = cast(int, plan.width), cast(int, plan.height)
    return width + -width % LATENT_FACTOR, height + -height % LATENT_FACTOR


def pixels_of_result(plan: GenerateRequest) -> int:
    """Pixels that are denoised together for one result: of all its frames."""
    width, height = draw_size(plan)
    return width * height * max(METHODS[stage.method].frames for stage in _stages(plan))


def _batches(results: Sequence[_Result], model: Model) -> Iterator[list[_Result]]:
    """The results in batches of what may be drawn at once, all with prompts of the same length."""
    at_once = max(1, model.pixels_at_once // pixels_of_result(results[0].plan))
    alike: dict[tuple[int, ...], list[_Result]] = {}
    for result in results:
        alike.setdefault(_lengths(result.plan, model), []).append(result)
    for same in alike.values():
        for begin in range(0, len(same), at_once):
            yield same[begin : begin + at_once]


def _lengths(plan: GenerateRequest, model: Model) -> tuple[int, ...]:
    """Of every text that is read while the plan is drawn."""
    found: list[Tensor | None] = []
    for stage in _stages(plan):
        positive, negative, own = _prompts(plan, METHODS[stage.method], model)
        found += [positive.context, negative.context, *own]
    return tuple(0 if context is None else context.shape[1] for context in found)


def _announce(plan: GenerateRequest, count: int, model: Model, meter: Meter) -> None:
    """Tell the meter the work for `count` results of the plan."""
    for stage in _stages(plan):
        strength = plan.strength if plan.image is not None else None
        run: Plan = levels(SAMPLERS[stage.sampler], stage.schedule, stage.steps, model.table, strength)
        meter.expect(run.steps * NETWORK_STEP * count)
        if METHODS[stage.method].transparent:
            meter.expect(len(VIEWS) * count * DECODED_VIEW)


def _stages(plan: GenerateRequest) -> tuple[Stage, ...]:
    return cast(tuple[Stage, ...], plan.stages)


def _source(plan: GenerateRequest) -> NoiseSource:
    return cast(NoiseSource, plan.noise_source)
