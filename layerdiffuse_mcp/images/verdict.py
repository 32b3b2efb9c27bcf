"""Whether a picture is what was asked for, as far as its alpha can tell: one table of rules, the first that holds.

    verdict, reason = judge(facts, "a glass of water")      # ("good", None)

A picture without an alpha channel breaks no rule. Nothing heavy is imported.
"""

import re
from collections.abc import Callable
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


def _opaque(facts: AlphaFacts, prompt: str | None) -> float:
    return facts.opaque


def _transparent(facts: AlphaFacts, prompt: str | None) -> float:
    return facts.transparent


def _edges(facts: AlphaFacts, prompt: str | None) -> float:
    return len(facts.edges_touched)


def _partial_for_no_reason(facts: AlphaFacts, prompt: str | None) -> float:
    """The share of what is visible that is partial; 0 where the prompt names what shines through, or is not known."""
    visible = facts.partial + facts.opaque
    if not visible or prompt is None or SHINES_THROUGH.search(prompt):
        return 0.0
    return facts.partial / visible


class Rule(NamedTuple):
    """What is wrong with a picture whose `measure`, by its facts and its prompt, is at least `threshold`."""

    verdict: Verdict
    measure: Callable[[AlphaFacts, str | None], float]
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
        "doubtful", _edges, 4,
        "it touches all four edges: it is cut off, or a scene instead of a cut-out. Try another seed, or name one "
        "whole subject",
    ),
    Rule(
        "doubtful", _partial_for_no_reason, 0.6,
        "{measure:.0%} of what is visible shines through, and the prompt names nothing that does. Try another seed",
    ),
)  # fmt: skip


def judge(facts: AlphaFacts | None, prompt: str | None = None) -> tuple[Verdict, str | None]:
    """The verdict on a picture with these alpha facts, and the reason where it is not good."""
    for rule in RULES if facts else ():
        assert facts is not None
        if (measure := rule.measure(facts, prompt)) >= rule.threshold:
            return rule.verdict, rule.reason.format(measure=measure)
    return "good", None
