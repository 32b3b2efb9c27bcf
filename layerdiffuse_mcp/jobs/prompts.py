"""What prompts are refused for before a job waits: what they say at some time is too long, or cannot be drawn.

check_prompts(plan, family, {"easynegative": 8})    # raises InvalidRequest, or returns the inversions that they name

The planner (`jobs/planner.py`) asks it.
"""

from collections.abc import Iterator, Mapping

from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.api.texts import calls_of, reads_marks, texts_of
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.families.spec import FamilySpec
from layerdiffuse_mcp.text.chunks import count_tokens, named_in
from layerdiffuse_mcp.text.composition import composed, scheduled


def check_prompts(plan: DrawPlan, family: FamilySpec, inversions: Mapping[str, int]) -> tuple[str, ...]:
    """Refuse prompts that are longer than the model reads at some time, and marks that cannot be read where marks act.

    Returns those of the `inversions` (how many vectors each has) that they name at some time.
    """
    acts = reads_marks(family)
    for role, text in plan.layer_prompts.items():
        if acts and len(composed(text)) > 1:
            raise InvalidRequest(
                f"{role}_prompt has AND in it, which joins prompts of the whole picture: write it in prompt, where the "
                "layer's own text is put before each part."
            )
    inversions = inversions if acts else {}
    named: set[str] = set()
    for name, text in dict.fromkeys(_read(plan) if acts else _typed(plan)):
        if (count := count_tokens(text, inversions)) > family.most_tokens:
            raise InvalidRequest(f"{name} has {count} tokens; at most {family.most_tokens} are allowed. Shorten it.")
        named |= named_in(text, inversions)
    return tuple(sorted(named))


def _typed(plan: DrawPlan) -> Iterator[tuple[str, str]]:
    """Every text with the name of its field."""
    yield "prompt", plan.prompt
    yield "negative_prompt", plan.negative_prompt
    yield from ((f"{role}_prompt", text) for role, text in plan.layer_prompts.items())


def _read(plan: DrawPlan) -> Iterator[tuple[str, str]]:
    """What a text encoder reads at some time, with the name of the field that it is of."""
    for stage in plan.stages:
        outputs, calls = METHODS[stage.method].outputs, calls_of(stage)
        named = [("negative_prompt", plan.negative_prompt)]
        for text in texts_of(plan.prompt, plan.layer_prompts, METHODS[stage.method]):
            frames = zip(outputs, text.frames, strict=False)
            named += [("prompt", text.common), *((f"{role}_prompt", said) for role, said in frames if said is not None)]
        yield from ((name, part.text) for name, text in named for part in scheduled(text, calls))
