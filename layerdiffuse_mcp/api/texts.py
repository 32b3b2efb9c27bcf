"""Which texts a stage reads: those that guide together, and in each the frames' own.

    [text] = texts_of("a cat", {"background": "a meadow"}, method)
    text.frames                     # (None, "a meadow, a cat", None): foreground and blended read the common one
    calls_of(stage)                 # how often the denoiser is called, which is what changes of a prompt are counted in

Nothing heavy is imported.
"""

from collections.abc import Mapping
from typing import NamedTuple

from layerdiffuse_mcp.api.choices import SAMPLERS
from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.api.requests import Stage
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.families.spec import FamilySpec, LayerMethod, Role
from layerdiffuse_mcp.text.composition import composed
from layerdiffuse_mcp.text.emphasis import extract_loras


class Text(NamedTuple):
    """What guides with a weight: the text of all frames, and those that have one of their own, else None."""

    weight: float
    common: str
    frames: tuple[str | None, ...] = ()


def texts_of(prompt: str, layer_prompts: Mapping[Role, str], method: LayerMethod) -> list[Text]:
    """The texts by which a method draws, without `<lora:...>` tags; a layer's own stands before each that AND joins.

    Raises:
        InvalidRequest: as of `composed`.
    """
    own = {role: extract_loras(text)[0] for role, text in layer_prompts.items() if text}
    texts: list[Text] = []
    for text, weight in composed(extract_loras(prompt)[0]):
        whole = [_joined(own.get(role, ""), text) for role in method.outputs]
        if method.frames == 1:
            texts.append(Text(weight, whole[0]))
        else:
            frames = [said if role in own else None for role, said in zip(method.outputs, whole, strict=True)]
            texts.append(Text(weight, text, tuple(frames)))
    return texts


def together(plan: DrawPlan) -> int:
    """How many prompts guide a drawing at once; 1 where the family reads no marks."""
    return len(composed(extract_loras(plan.prompt)[0])) if reads_marks(FAMILIES[plan.family]) else 1


def reads_marks(family: FamilySpec) -> bool:
    """Whether a family's drawings follow what stands in a prompt beside words: emphasis, changes, AND."""
    return "emphasis" in family.accepts


def calls_of(stage: Stage) -> int:
    """How often a stage's sampler calls the denoiser, as the reference counts it; an edit ends before."""
    return stage.steps * (2 if SAMPLERS[stage.sampler].second_order else 1)


def _joined(extra: str, prompt: str) -> str:
    return ", ".join(part for part in (extra, prompt) if part)
