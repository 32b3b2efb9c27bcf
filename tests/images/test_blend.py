"""Blend modes, one pixel at a time, as the W3C writes them."""

import math

import numpy as np
import pytest

from layerdiffuse_mcp.api.layers import BLENDS
from layerdiffuse_mcp.images.alpha import over
from layerdiffuse_mcp.images.blend import MODES, PLUS, blended


def hard_light(cb: float, cs: float) -> float:
    return cb * 2 * cs if cs <= 0.5 else cb + (2 * cs - 1) - cb * (2 * cs - 1)


def soft_light(cb: float, cs: float) -> float:
    if cs <= 0.5:
        return cb - (1 - 2 * cs) * cb * (1 - cb)
    root = ((16 * cb - 12) * cb + 4) * cb if cb <= 0.25 else math.sqrt(cb)
    return cb + (2 * cs - 1) * (root - cb)


FORMULAS = {
    "normal": lambda cb, cs: cs,
    "multiply": lambda cb, cs: cb * cs,
    "screen": lambda cb, cs: cb + cs - cb * cs,
    "overlay": lambda cb, cs: hard_light(cs, cb),
    "soft-light": soft_light,
    "add": lambda cb, cs: min(1, cb + cs),
}
"""B(cb, cs) of "Compositing and Blending Level 1", by scalars; add is Photoshop's linear dodge."""
STEPS = np.linspace(0, 1, 21, dtype=np.float32)


def pixels(colours, alpha):
    return np.stack([colours, colours, colours, np.broadcast_to(np.float32(alpha), colours.shape)], axis=-1)


def test_every_mode_that_can_be_asked_for_is_computed():
    assert list(MODES) == list(BLENDS) == list(FORMULAS)


@pytest.mark.parametrize("mode", BLENDS)
@pytest.mark.parametrize(("top", "bottom"), [(1, 1), (0.5, 1), (0.7, 0.4), (0.3, 0), (0, 0.6)])
def test_a_mode_is_the_formula_of_the_w3c(mode: str, top: float, bottom: float):
    cb, cs = np.meshgrid(STEPS, STEPS)
    made = blended(pixels(cs, top), pixels(cb, bottom), mode)
    alpha = top + bottom * (1 - top)
    assert np.allclose(made[..., 3], alpha, atol=1e-6)
    for row, column in np.ndindex(cb.shape):
        b, s = float(cb[row, column]), float(cs[row, column])
        mixed = (1 - bottom) * s + bottom * FORMULAS[mode](b, s)
        expected = (top * mixed + (1 - top) * bottom * b) / alpha if alpha else 0
        assert made[row, column, 0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("mode", BLENDS)
def test_alpha_is_that_of_plain_layers_in_every_mode(mode: str):
    top, bottom = (np.random.default_rng(seed).random((8, 8, 4), np.float32) for seed in (0, 1))
    assert np.array_equal(blended(top, bottom, mode)[..., 3], over(top, bottom)[..., 3])


def test_plus_adds_light_and_alpha():
    made = blended(np.float32([[[0.5, 1, 0, 0.6]]]), np.float32([[[0.5, 1, 1, 0.2]]]), PLUS)[0, 0]
    assert made.tolist() == pytest.approx([0.5, 1, 0.25, 0.8])
    full = blended(np.float32([[[0.5, 1, 0, 0.6]]]), np.float32([[[0.5, 1, 0, 1]]]), PLUS)[0, 0]
    assert full.tolist() == pytest.approx([0.8, 1, 0, 1])
