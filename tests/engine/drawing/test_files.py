"""What is said of a drawn layer: the verdict is on what was drawn, and says so where the fitted picture differs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from layerdiffuse_mcp.engine.drawing.files import facts_of
from layerdiffuse_mcp.engine.types import LayerImage
from layerdiffuse_mcp.images.describe import describe
from layerdiffuse_mcp.images.fitting import fitted

CROSS = np.zeros((64, 64, 4), np.uint8)
CROSS[24:40] = CROSS[:, 24:40] = (200, 40, 40, 255)
OPAQUE = np.full((64, 64, 4), 255, np.uint8)


@pytest.mark.parametrize(("drawn", "words"), [(CROSS, "it touches all four edges"), (OPAQUE, "it is opaque")])
@pytest.mark.parametrize(
    ("fit", "size", "as_drawn"),
    [("contain", (120, 64), True), ("contain", (32, 32), False), ("cover", (120, 64), False)],
)
def test_the_verdict_says_where_it_is_on_another_picture_than_the_one_that_is_described(
    drawn: np.ndarray, words: str, fit: str, size: tuple[int, int], as_drawn: bool
):
    one = LayerImage("foreground", 1, drawn, torch.zeros(4, 8, 8))
    facts = facts_of(replace(one, pixels=fitted(drawn, None, (64, 64), size, fit)[0]), judged=one)
    assert facts.alpha is not None
    assert (facts.reason or "").startswith(f"as drawn at 64x64, {words}" if as_drawn else words)
    if as_drawn:
        assert "all four" not in describe(facts.alpha)
        assert "fully opaque" not in describe(facts.alpha)
