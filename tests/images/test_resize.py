"""Fitting pictures to a size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerdiffuse_mcp.api.choices import RESIZE_MODES
from layerdiffuse_mcp.images.resize import resized

sides = st.integers(1, 90)


@settings(max_examples=50, deadline=None)
@given(sides, sides, sides, sides, st.sampled_from(RESIZE_MODES))
def test_every_mode_gives_the_size_asked_for(height, width, new_height, new_width, mode):
    picture = np.full((height, width, 3), 0.25, np.float32)
    fitted = resized(picture, new_height, new_width, mode)
    assert fitted.shape == (new_height, new_width, 3)
    assert fitted.dtype == np.float32
    assert np.allclose(fitted, 0.25, atol=1e-5)


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_a_picture_of_the_right_size_is_left_alone(mode):
    picture = np.random.default_rng(0).random((24, 40, 3), np.float32)
    fitted = resized(picture, 24, 40, mode)
    assert np.array_equal(fitted, picture)
    assert fitted is not picture


def test_crop_cuts_the_sides_and_fill_adds_the_border_colour():
    picture = np.zeros((10, 30, 3), np.float32)
    picture[:, 10:20] = 1
    assert (resized(picture, 10, 10, "Crop and Resize") == 1).all()
    filled = resized(picture, 30, 30, "Resize and Fill")
    assert (filled[:10] == 0).all()
    assert (filled[20:] == 0).all()
    assert np.array_equal(filled[10:20], picture)
