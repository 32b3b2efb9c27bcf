"""What is fitted to another size keeps its place, its edges and its alpha."""

import numpy as np
import pytest

from layerdiffuse_mcp.api.sizes import whole_box
from layerdiffuse_mcp.images.fitting import fitted

RED = (255, 0, 0, 255)


def disc(width: int, height: int) -> np.ndarray:
    """A red rectangle in the middle, on hidden blue."""
    rgba = np.zeros((height, width, 4), np.uint8)
    rgba[..., 2] = 255
    rgba[height // 4 : -height // 4, width // 4 : -width // 4] = RED
    return rgba


@pytest.mark.parametrize(("how", "box"), [
    ("contain", (25, 0, 75, 50)), ("cover", (0, -25, 100, 75)), ("stretch", (0, 0, 100, 50)),
])  # fmt: skip
def test_a_square_comes_to_a_wide_picture_in_three_ways(how: str, box: tuple[int, ...]):
    assert whole_box((64, 64), (100, 50), how) == box


@pytest.mark.parametrize("how", ["contain", "cover", "stretch"])
@pytest.mark.parametrize("size", [(100, 50), (50, 100), (256, 256), (64, 2048), (7, 3)])
def test_hidden_colour_does_not_bleed_and_the_size_is_the_one_asked_for(how: str, size: tuple[int, int]):
    pixels, box = fitted(disc(64, 64), None, (64, 64), size, how)
    assert (pixels.shape, box) == ((size[1], size[0], 4), None)
    seen = pixels[..., 3] > 8
    assert pixels[..., 2][seen].max(initial=0) <= 8


def test_what_is_left_beside_a_contained_picture_is_transparent_or_goes_on_as_its_edge():
    clear, _ = fitted(np.full((64, 64, 4), 255, np.uint8), None, (64, 64), (128, 64), "contain")
    assert not clear[:, :32, 3].any()
    assert clear[:, 32:96, 3].all()
    opaque, _ = fitted(np.full((64, 64, 3), 90, np.uint8), None, (64, 64), (128, 64), "contain")
    assert opaque.shape == (64, 128, 3)
    assert (opaque == 90).all()


def test_a_layer_that_fills_a_part_stays_where_it_was():
    pixels, box = fitted(disc(20, 10), (10, 20, 30, 30), (64, 64), (128, 128), "contain")
    assert box == (20, 40, 60, 60)
    assert pixels.shape == (20, 40, 4)
    _, at_the_edge = fitted(disc(20, 10), (0, 0, 20, 10), (64, 64), (128, 64), "cover")
    assert at_the_edge == (0, 0, 40, 1)  # above what is shown: a pixel of it
