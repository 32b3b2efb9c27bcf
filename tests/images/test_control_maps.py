"""The maps that ControlNets are shown."""

import numpy as np
import pytest

from layerdiffuse_mcp.api.choices import PREPROCESS
from layerdiffuse_mcp.images.alpha import Bytes
from layerdiffuse_mcp.images.control_maps import control_map, looks_like_lines


def square() -> Bytes:
    """White on transparent black, whose colour goes on below what is transparent; inside it a red half."""
    picture = np.zeros((32, 32, 4), np.uint8)
    picture[..., :3] = 255
    picture[8:24, 8:24, 3] = 255
    picture[8:24, 16:24, :3] = 255, 0, 0
    return picture


@pytest.mark.parametrize("preprocess", PREPROCESS)
def test_every_preprocessing_makes_a_map_of_the_pictures_size(preprocess: str):
    made = control_map(square(), preprocess)
    assert made.shape == (32, 32, 3)
    assert made.dtype == np.uint8


def test_maps_of_lines_are_told_from_other_pictures():
    assert looks_like_lines(np.dstack([control_map(square(), "canny"), np.full((32, 32), 255, np.uint8)]))
    others: list[tuple[int, int, int]] = [(255, 255, 255), (128, 128, 128), (120, 20, 0)]
    for colour in others:
        assert not looks_like_lines(np.full((32, 32, 4), (*colour, 255), np.uint8))
    assert not looks_like_lines(square())


def test_a_map_that_is_given_stays_as_it_is_where_it_is_opaque():
    made = control_map(square(), "none")
    assert (made[8:24, 8:24] == square()[8:24, 8:24, :3]).all()
    assert not made[:8].any()


def test_canny_finds_edges_inside_and_outside():
    made = control_map(square(), "canny")
    assert {*np.unique(made)} == {0, 255}
    assert made[16, 5:11].any()
    assert made[16, 13:19].any()


def test_alpha_edge_finds_the_outline_alone():
    made = control_map(square(), "alpha_edge")
    assert made[16, 5:11].any()
    assert not made[16, 12:20].any()
