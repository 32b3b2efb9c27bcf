"""Whether a picture is what was asked for, as far as its alpha and its prompt can tell: one table of rules, the first
that holds.

    verdict, reason = judge(facts, Asked("a glass of water"))   # ("good", None)
    judge(facts, kind="sheet")                                  # (None, None): a sheet is to fill its frame

Nothing heavy is imported.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from layerdiffuse_mcp.api.outcome import AlphaFacts, Verdict

SHINES_THROUGH = re.compile(
    r"glass|crystal|transparen|translucen|see-through|smok|steam|vapo|mist|fog|haz[ey]|cloud|dust|glow|shin[ie]|light|"
    r"fire|flam|spark|lightning|neon|laser|aura|halo|magic|energy|ghost|spirit|hologra|bubble|water|wave|splash|"
    r"rain|liquid|ice|frost|snow|jell|gel\b|veil|lace|tulle|gauze|silk|feather|fur|hair|fluff|web|net\b|wing|shadow|"
    r"lens|plastic|foil|film|soap|diamond|gem|nebula|x-ray|explosion",
    re.IGNORECASE,
)
"""Words for what may well be partial all over."""


class Asked(NamedTuple):
    """What a picture was to show: its prompt, if that is known, and whether the base has no word for its subject; and
    of one that was redrawn larger, which share of its alpha is elsewhere since; and of layers, by how much of 255 they
    together differ on average from the picture that was taken apart.
    """

    prompt: str | None = None
    unknown_subject: bool = False
    drifted: float = 0.0
    difference: float = 0.0


NOT_KNOWN = Asked()


def _opaque(facts: AlphaFacts, asked: Asked) -> float:
    return facts.opaque


def _transparent(facts: AlphaFacts, asked: Asked) -> float:
    return facts.transparent


def _drifted(facts: AlphaFacts, asked: Asked) -> float:
    return asked.drifted


def _edges(facts: AlphaFacts, asked: Asked) -> float:
    return len(facts.edges_touched)


def _unknown(facts: AlphaFacts, asked: Asked) -> float:
    return asked.unknown_subject


def _partial_for_no_reason(facts: AlphaFacts, asked: Asked) -> float:
    """The share of what is visible that is partial; 0 where the prompt names what shines through, or is not known."""
    visible = facts.partial + facts.opaque
    if not visible or asked.prompt is None or SHINES_THROUGH.search(asked.prompt):
        return 0.0
    return facts.partial / visible


def _difference(facts: AlphaFacts, asked: Asked) -> float:
    return asked.difference


class Rule(NamedTuple):
    """What is wrong with a picture whose `measure`, by its facts and what was asked for, is at least `threshold`."""

    verdict: Verdict
    measure: Callable[[AlphaFacts, Asked], float]
    threshold: float
    reason: str


RULES = (
    Rule(
        "failed", _opaque, 0.99,
        "it is opaque, no transparency came out. Try another seed or method, name only the subject and no background "
        "in the prompt, or use a base that can draw a plain grey background",
    ),
    Rule(
        "failed", _transparent, 0.99,
        "nearly nothing is left of it: {measure:.1%} is transparent. Try another seed or simpler words",
    ),
    Rule(
        "doubtful", _unknown, 1,
        "the model knows no subject that the prompt names, so it likely shows something else, with any seed. Name one "
        "that it knows, or use a larger model",
    ),
    Rule(
        "doubtful", _drifted, 0.25,
        "its alpha changed while it was redrawn larger: {measure:.0%} of it is elsewhere. Lower the strength, or name "
        "what it shows more exactly",
    ),
    Rule(
        "doubtful", _edges, 4,
        "it touches all four edges: it is cut off, or a scene instead of a cut-out. Try another seed, or name one "
        "whole subject",
    ),
    Rule(
        "doubtful", _partial_for_no_reason, 0.6,
        "{measure:.0%} of what is visible shines through, and the prompt names nothing that does. Try another seed",
    ),
)  # fmt: skip


CUT_OUT, TOGETHER = "foreground", "layers together"
RULES_OF: Mapping[str, tuple[Rule, ...]] = {
    CUT_OUT: RULES,
    TOGETHER: (
        Rule(
            "doubtful", _difference, 20,
            "the layers do not make up the picture, from which they differ by {measure:.0f} of 255. Try another seed, "
            "more steps, or a prompt that says all that it shows",
        ),
    ),
}  # fmt: skip
"""By what a picture is called (`PictureFacts.label`). Others have to keep none: backgrounds and blended pictures are
opaque, sheets and compositions fill their frames, and of the layers that a model names itself one may do either.
"""


def has_to_keep_clear(kind: str) -> bool:
    """Whether such a picture may be cut off where it touches an edge; others are to reach them."""
    return any(rule.measure is _edges for rule in RULES_OF.get(kind, ()))


def judge(facts: AlphaFacts | None, asked: Asked = NOT_KNOWN, kind: str = CUT_OUT) -> tuple[Verdict | None, str | None]:
    """The verdict on a picture with these alpha facts, and the reason where it is not good.

    None where it has no alpha channel, or nothing was asked of its alpha.
    """
    if facts is None or kind not in RULES_OF:
        return None, None
    for rule in RULES_OF[kind]:
        if (measure := rule.measure(facts, asked)) >= rule.threshold:
            return rule.verdict, rule.reason.format(measure=measure)
    return "good", None
