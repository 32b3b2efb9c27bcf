"""Step 1 of a stage: its prompts as conditionings.

prompts = joined([encode(plan, method, model) for plan in plans], method.frames)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.pipeline.batch import tiles_of
from layerdiffuse_mcp.engine.types import Conditioning
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.families.spec import LayerMethod


@dataclass(frozen=True, eq=False)
class Prompts:
    """What the denoiser reads. frames: embeddings (1 or N, T, C) of frames that have a prompt of their own."""

    positive: Conditioning
    negative: Conditioning
    frames: tuple[Tensor | None, ...] = ()


def encode(plan: DrawPlan, method: LayerMethod, model: StableDiffusion) -> Prompts:
    """The prompts of one result by a method."""
    width, height = tiles_of(plan, model.latent).tile

    def encoded(text: str, negative: bool = False) -> Conditioning:
        return model.encode_prompt(
            text,
            negative=negative,
            clip_skip=plan.clip_skip,
            emphasis=plan.emphasis,
            width=width,
            height=height,
        )

    texts = [join_prompts(plan.layer_prompts.get(role, ""), plan.prompt) for role in method.outputs]
    if method.frames == 1:
        return Prompts(encoded(texts[0]), encoded(plan.negative_prompt, negative=True))
    frames = tuple(
        encoded(text).context if plan.layer_prompts.get(role) else None
        for role, text in zip(method.outputs, texts, strict=True)
    )
    return Prompts(encoded(plan.prompt), encoded(plan.negative_prompt, negative=True), frames)


def joined(prompts: Sequence[Prompts], frames: int) -> Prompts:
    """The prompts of a batch's results as one, with a row for each picture (image, frame) unless all are the same."""
    first = prompts[0]
    if all(
        one.positive.context is first.positive.context and one.negative.context is first.negative.context
        for one in prompts
    ):
        return first

    def rows(conditionings: Sequence[Conditioning]) -> Conditioning:
        vectors = [one.vector for one in conditionings if one.vector is not None]
        context = torch.cat([one.context for one in conditionings]).repeat_interleave(frames, 0)
        return Conditioning(context, torch.cat(vectors).repeat_interleave(frames, 0) if vectors else None)

    texts = [
        [text for text in frame if text is not None] for frame in zip(*(one.frames for one in prompts), strict=True)
    ]
    return Prompts(
        rows([one.positive for one in prompts]),
        rows([one.negative for one in prompts]),
        tuple(torch.cat(frame) if frame else None for frame in texts),
    )


def lengths(plan: DrawPlan, model: StableDiffusion) -> tuple[int, ...]:
    """Tokens of every text that is read while the plan is drawn; 0 where a frame has none of its own."""
    found: list[Tensor | None] = []
    for stage in plan.stages:
        prompts = encode(plan, METHODS[stage.method], model)
        found += [prompts.positive.context, prompts.negative.context, *prompts.frames]
    return tuple(0 if context is None else context.shape[1] for context in found)


def join_prompts(extra: str, prompt: str) -> str:
    """A layer's own prompt in front of the common one."""
    return ", ".join(part for part in (extra, prompt) if part)
