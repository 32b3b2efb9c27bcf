"""Step 1 of a stage: its prompts as conditionings, each call of the denoiser with what it reads.

prompts = joined([encode(plan, stage, model) for plan in plans], method.frames)
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.api.requests import Stage
from layerdiffuse_mcp.api.texts import calls_of, texts_of
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.pipeline.batch import tiles_of
from layerdiffuse_mcp.engine.types import Conditioning, Timed
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.text.composition import scheduled


@dataclass(frozen=True, eq=False)
class Prompts:
    """What the denoiser reads: the prompts that guide together, and the negative one."""

    positive: tuple[Timed, ...]
    negative: Timed


def encode(plan: DrawPlan, stage: Stage, model: StableDiffusion) -> Prompts:
    """The prompts of one result in a stage."""
    width, height = tiles_of(plan, model.latent).tile
    calls = calls_of(stage)

    def encoded(text: str, negative: bool = False) -> Conditioning:
        return model.encode_prompt(
            text,
            negative=negative,
            clip_skip=plan.clip_skip,
            emphasis=plan.emphasis,
            width=width,
            height=height,
        )

    positive = tuple(
        Timed(_parts(text.common, text.frames, calls, encoded), text.weight)
        for text in texts_of(plan.prompt, plan.layer_prompts, METHODS[stage.method])
    )
    negative = _parts(plan.negative_prompt, (), calls, lambda text: encoded(text, negative=True))
    return Prompts(positive, Timed(negative))


def _parts(
    common: str, frames: Sequence[str | None], calls: int, encoded: Callable[[str], Conditioning]
) -> tuple[tuple[int, Conditioning], ...]:
    """A text and those of frames over the calls: a part wherever one of them changes."""
    schedules = [scheduled(text, calls) if text is not None else [] for text in (common, *frames)]
    made: dict[tuple[str | None, ...], Conditioning] = {}
    parts: list[tuple[int, Conditioning]] = []
    for end in sorted({part.end for schedule in schedules for part in schedule}):
        said = tuple(next((part.text for part in schedule if end <= part.end), None) for schedule in schedules)
        if said not in made:
            whole = encoded(said[0] or "")
            own = tuple(None if text is None else encoded(text).context for text in said[1:])
            made[said] = replace(whole, frames=own)
        parts.append((end, made[said]))
    return tuple(parts)


def joined(prompts: Sequence[Prompts], frames: int) -> Prompts:
    """The prompts of a batch's results as one, with a row for each picture (image, frame) unless all are the same."""

    def together(timed: Sequence[Timed]) -> Timed:
        made: dict[tuple[int, ...], Conditioning] = {}
        parts: list[tuple[int, Conditioning]] = []
        for same in zip(*(one.parts for one in timed), strict=True):
            conditionings = [conditioning for _, conditioning in same]
            key = tuple(map(id, conditionings))
            made[key] = made.get(key) or _rows(conditionings, frames)
            parts.append((same[0][0], made[key]))
        return Timed(tuple(parts), timed[0].weight)

    positive = tuple(together(timed) for timed in zip(*(one.positive for one in prompts), strict=True))
    return Prompts(positive, together([one.negative for one in prompts]))


def _rows(conditionings: Sequence[Conditioning], frames: int) -> Conditioning:
    first = conditionings[0]
    if len({tuple(map(id, (one.context, *one.frames))) for one in conditionings}) == 1:
        return first
    vectors = [one.vector for one in conditionings if one.vector is not None]
    framed = zip(*(one.frames for one in conditionings), strict=True)
    texts = [[text for text in frame if text is not None] for frame in framed]
    return Conditioning(
        torch.cat([one.context for one in conditionings]).repeat_interleave(frames, 0),
        torch.cat(vectors).repeat_interleave(frames, 0) if vectors else None,
        frames=tuple(torch.cat(frame) if frame else None for frame in texts),
    )


def shape(plan: DrawPlan, model: StableDiffusion) -> Hashable:
    """What has to be alike in plans that are drawn as one batch: when their prompts change, weights, and lengths."""
    return tuple(_shape(timed) for stage in plan.stages for timed in _all(encode(plan, stage, model)))


def _all(prompts: Prompts) -> Sequence[Timed]:
    return (*prompts.positive, prompts.negative)


def _shape(timed: Timed) -> Hashable:
    def length(text: Tensor | None) -> int:
        return 0 if text is None else text.shape[1]

    parts = [(end, length(text.context), *map(length, text.frames)) for end, text in timed.parts]
    return timed.weight, *parts
