"""Verdicts: for each rule ten pictures that it is for, and ten near them that are good."""

from collections.abc import Callable

import numpy as np
import pytest

from layerdiffuse_mcp.images.alpha import Bytes, alpha_facts
from layerdiffuse_mcp.images.describe import describe
from layerdiffuse_mcp.images.verdict import RULES, Asked, judge

SIDE = 100
KINDS_THAT_FILL = ("background", "blended", "composed", "composition", "sheet")


def picture(alpha: int = 0) -> Bytes:
    """A square of one alpha."""
    return np.full((SIDE, SIDE, 4), (200, 40, 40, alpha), np.uint8)


def box(n: int, alpha: int = 255, inner: int | None = None) -> Bytes:
    """A subject of 12 + 4n pixels a side, clear of the edges; its middle may have another alpha."""
    made = picture()
    made[20 : 32 + 4 * n, 20 : 32 + 4 * n, 3] = alpha
    if inner is not None:
        made[22 : 30 + 4 * n, 22 : 30 + 4 * n, 3] = inner
    return made


def cross(n: int, reach: int) -> Bytes:
    """Two bars of 4 + n pixels; they end `reach` pixels from the edges."""
    made, bar = picture(), slice(48 - n // 2, 52 + n // 2)
    made[bar, reach : SIDE - reach, 3] = made[reach : SIDE - reach, bar, 3] = 255
    return made


def holed(n: int, pixels: int) -> Bytes:
    """Opaque but for a hole of so many pixels."""
    made = picture(255)
    made[10 + n, :pixels, 3] = 0 if pixels <= SIDE else made[10 + n, :pixels, 3]
    if pixels > SIDE:
        made[30 : 30 + pixels // 10, 30 + n : 40 + n, 3] = 0
    return made


def dot(n: int, pixels: int) -> Bytes:
    """So many visible pixels in one column."""
    made = picture()
    made[40 : 40 + pixels // 5, 20 + n : 25 + n, 3] = 255
    return made


Draw = Callable[[int], Bytes]
CASES: dict[str, tuple[Draw, Draw, str, str]] = {
    "it is opaque": (lambda n: holed(n, 9 * n), lambda n: box(n), "a cup", "failed"),
    "nearly nothing": (lambda n: dot(n, 10 * n), lambda n: dot(n, 110 + 10 * n), "a needle", "failed"),
    "knows no subject": (lambda n: box(n), lambda n: box(n), "a harp", "doubtful"),
    "its alpha changed": (lambda n: box(n), lambda n: box(n), "a harp", "doubtful"),
    "all four edges": (lambda n: cross(n, 0), lambda n: cross(n, 1 + n), "a star", "doubtful"),
    "shines through": (lambda n: box(n, 128 + n), lambda n: box(n, 128, 255), "a brick", "doubtful"),
}
"""By the reason: what should trip it and what should not, n = 0 to 9; the prompt, and the verdict."""


def test_every_rule_has_its_pictures():
    assert len(CASES) == len(RULES)
    assert all(reason in rule.reason for reason, rule in zip(CASES, RULES, strict=True))


@pytest.mark.parametrize("reason", CASES)
@pytest.mark.parametrize("n", range(10))
def test_a_rule_is_tripped_by_its_pictures_and_not_by_their_neighbours(reason: str, n: int):
    bad, good, prompt, verdict = CASES[reason]
    drifted = 0.26 + n / 10 if "changed" in reason else 0.0
    said, why = judge(alpha_facts(bad(n)), Asked(prompt, "knows" in reason, drifted))
    assert (said, reason in (why or "")) == (verdict, True)
    assert judge(alpha_facts(good(n)), Asked(prompt, drifted=0.24)) == ("good", None)


@pytest.mark.parametrize("reason", ["it is opaque", "nearly nothing"])
def test_what_failed_is_not_excused_by_an_unknown_subject(reason: str):
    bad, _, prompt, _ = CASES[reason]
    assert judge(alpha_facts(bad(3)), Asked(prompt, unknown_subject=True))[0] == "failed"


WORDS = (
    "a glass",
    "Smoke",
    "a glowing book",
    "steam over a cup",
    "a jellyfish",
    "soap bubbles",
    "a ghost",
    "fire",
    "veil",
)


@pytest.mark.parametrize("prompt", [*WORDS, None])
def test_what_shines_through_by_its_name_is_good(prompt: str | None):
    assert judge(alpha_facts(box(3, 128)), Asked(prompt)) == ("good", None)


def test_a_layer_without_alpha_breaks_no_rule():
    assert judge(None, Asked("a meadow")) == (None, None)


@pytest.mark.parametrize("kind", [*KINDS_THAT_FILL, "a layer that a model names itself"])
@pytest.mark.parametrize("n", range(10))
def test_what_is_to_fill_its_frame_is_neither_judged_nor_said_to_be_cut_off(kind: str, n: int):
    for bad, *_ in CASES.values():
        facts = alpha_facts(bad(n))
        assert judge(facts, Asked("a brick", unknown_subject=True), kind) == (None, None)
        assert "edge" not in describe(facts, kind)
    assert "edge" in describe(alpha_facts(cross(n, 0)))
