"""Previews: small, honest about transparency, and of the right colours."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.preview import GUTTER, preview


def shown(made):
    with Image.open(io.BytesIO(made.data)) as image:
        assert image.size == (made.width, made.height)
        assert Image.MIME[image.format] == made.mime_type
        return np.array(image.convert("RGB"))


def flat(height, width, rgba):
    return np.tile(np.array(rgba, np.uint8), (height, width, 1))


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)


def test_transparency_shows_as_a_checkerboard_and_colour_below_it_does_not():
    pixels = shown(preview([flat(600, 600, (255, 0, 0, 0))]))
    assert pixels.shape == (512, 512, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) == 2
    assert (pixels[..., 0] == pixels[..., 1]).all()


@pytest.mark.parametrize(
    ("background", "pixel"), [("black", (0, 0, 0)), ("white", (255, 255, 255)), ("#102030", (16, 32, 48))]
)
def test_a_background_may_be_a_colour(background, pixel):
    assert tuple(shown(preview([flat(300, 300, (9, 9, 9, 0))], background))[0, 0]) == pixel


def test_an_unknown_background_is_refused_with_what_is_allowed():
    with pytest.raises(InvalidRequest, match="checkerboard"):
        preview([noise(8, 8)], "plaid")


def test_shrinking_bleeds_no_hidden_colour_into_edges():
    picture = flat(1024, 1024, (0, 255, 0, 0))
    picture[:, 301:700] = (255, 0, 0, 255)
    pixels = shown(preview([picture], "black"))
    assert pixels[..., 1].max() == 0


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 700), st.integers(1, 700)), min_size=1, max_size=8))
def test_any_number_of_any_size_stays_within_the_limits(sizes):
    made = preview([noise(height, width) for height, width in sizes])
    assert max(made.width, made.height) <= 512
    assert len(made.data) <= 22_000


def test_extreme_shapes_stay_within_the_limits():
    for shape in ((1, 5000), (5000, 1), (1, 1)):
        made = preview([noise(*shape)])
        assert min(made.width, made.height) >= 1
        assert max(made.width, made.height) <= 512


def test_what_compresses_is_png_and_what_does_not_is_jpeg_within_the_budget():
    assert preview([flat(512, 512, (10, 200, 30, 255))]).mime_type == "image/png"
    made = preview([noise(512, 512)])
    assert made.mime_type == "image/jpeg"
    assert len(made.data) <= 22_000
    assert len(preview([noise(512, 512)], max_bytes=4000).data) <= 4000


@pytest.mark.parametrize(("side", "expected"), [(16, 64), (64, 256), (100, 400), (128, 512), (129, 129), (400, 400)])
def test_only_tiny_pictures_are_enlarged_and_by_whole_pixels(side, expected):
    picture = noise(side, side)
    made = preview([picture], "black", max_bytes=10**7)
    assert (made.width, made.height) == (expected, expected)
    pixels = shown(made)
    factor = expected // side
    assert np.array_equal(pixels[::factor, ::factor], pixels[factor - 1 :: factor, factor - 1 :: factor])


def test_several_pictures_stand_side_by_side_in_order():
    colours = [(255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255)]
    made = preview([flat(512, 512, colour) for colour in colours])
    assert made.width == 512
    pixels = shown(made)
    cell = (512 - GUTTER) // 2
    assert tuple(pixels[50, 50]) == (255, 0, 0)
    assert tuple(pixels[50, cell + GUTTER + 50]) == (0, 255, 0)
    assert tuple(pixels[cell + GUTTER + 50, 50]) == (0, 0, 255)


def test_several_pictures_are_numbered_and_one_is_not():
    black = flat(200, 200, (0, 0, 0, 255))
    assert shown(preview([black]))[:20, :20].max() == 0
    four = shown(preview([black] * 4))
    corners = [four[top : top + 20, left : left + 20] for top in (0, 204) for left in (0, 204)]
    assert all(corner.max() > 200 for corner in corners)
    assert all((one != other).any() for one in corners for other in corners if one is not other)
