"""Putting layers together: exact, placed where asked, trimmed and padded."""

import numpy as np
import pytest

from layerdiffuse_mcp.api.layers import MAX_SIDE
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.alpha import TILE_PIXELS, over, to_bytes, to_float
from layerdiffuse_mcp.images.compose import Layer, arrange, canvas_size, compose, flatten
from layerdiffuse_mcp.images.layout import Rectangle


def flat(height, width, rgba):
    return np.tile(np.array(rgba, np.uint8), (height, width, 1))


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)


RED, BLUE = (255, 0, 0, 255), (0, 0, 255, 255)


def test_one_layer_comes_back_unchanged():
    picture = noise(9, 13)
    picture[picture[..., 3] == 0] = 0
    assert np.array_equal(compose([Layer(picture, "a")]), picture)


def test_three_layers_are_rounded_once_at_the_end():
    bottom, middle, top = (noise(16, 16, seed) for seed in range(3))
    expected = over(to_float(top), over(to_float(middle), to_float(bottom)))
    assert np.array_equal(compose([Layer(p, "") for p in (bottom, middle, top)]), to_bytes(expected))


def test_the_first_layer_is_the_lowest_and_hidden_layers_are_left_out():
    layers = [Layer(flat(4, 4, RED), "red"), Layer(flat(2, 2, BLUE), "blue", x=1, y=2)]
    pixels = compose(layers)
    assert pixels[0, 0].tolist() == [*RED]
    assert pixels[2, 1].tolist() == [*BLUE]
    hidden = [layers[0], Layer(flat(2, 2, BLUE), "blue", visible=False)]
    assert (compose(hidden) == RED).all()


def test_opacity_weakens_a_layer():
    pixels = compose([Layer(flat(1, 1, RED), "red"), Layer(flat(1, 1, BLUE), "blue", opacity=0.4)])
    assert pixels[0, 0].tolist() == [153, 0, 102, 255]


def test_what_stands_over_the_canvas_is_cut():
    picture = noise(10, 10)
    picture[..., 3] = 255
    pixels = compose([Layer(picture, "a", x=-3, y=-4), Layer(picture, "b", x=100)], canvas=(5, 5))
    assert np.array_equal(pixels, picture[4:9, 3:8])


def test_the_canvas_reaches_as_far_as_the_layers_unless_a_background_says_otherwise():
    layers = [Layer(flat(4, 6, RED), "a", x=2, y=3), Layer(flat(2, 2, RED), "b", x=10)]
    assert compose(layers).shape == (7, 12, 4)
    assert compose(layers, background=flat(5, 5, BLUE)).shape == (5, 5, 4)


def test_a_background_is_a_colour_or_a_picture_below_all():
    layers = [Layer(flat(1, 1, RED), "a", opacity=0)]
    assert compose(layers, canvas=(2, 2), background=(0.0, 1.0, 0.0))[1, 1].tolist() == [0, 255, 0, 255]
    pixels = compose(layers, canvas=(3, 3), background=flat(2, 2, BLUE))
    assert pixels[1, 1].tolist() == [*BLUE]
    assert pixels[2, 2].tolist() == [0, 0, 0, 0]


def test_trimming_cuts_to_the_content_and_padding_adds_around_it():
    picture = np.zeros((20, 30, 4), np.uint8)
    picture[5:9, 7:12] = RED
    assert (flatten(arrange([Layer(picture, "a")], trim=True)) == RED).all()
    padded = flatten(arrange([Layer(picture, "a")], trim=True, pad=3))
    assert padded.shape == (4 + 6, 5 + 6, 4)
    assert (padded[3:7, 3:8] == RED).all()
    assert padded[..., 3].sum() == 20 * 255
    coloured = flatten(arrange([Layer(picture, "a")], background=(0, 0, 1), trim=True, pad=1))
    assert coloured.shape == (6, 7, 4)
    assert coloured[0, 0].tolist() == [*BLUE]


@pytest.mark.parametrize("opacity", [-0.1, 1.1, float("nan")])
def test_an_opacity_out_of_range_is_refused(opacity):
    with pytest.raises(InvalidRequest, match="opacity"):
        compose([Layer(flat(2, 2, RED), "a", opacity=opacity)])


def test_impossible_canvases_are_refused():
    red = Layer(flat(2, 2, RED), "a")
    with pytest.raises(InvalidRequest, match="no layers"):
        compose([])
    for canvas in ((0, 5), (40_000, 1), (20_000, 20_000)):
        with pytest.raises(InvalidRequest, match="canvas of"):
            compose([red], canvas=canvas)
    with pytest.raises(InvalidRequest, match="Nothing is visible"):
        arrange([Layer(flat(2, 2, (1, 2, 3, 0)), "a")], trim=True)


def test_bands_meet_without_a_seam():
    picture = noise(3 * TILE_PIXELS // 1000 + 7, 1000)
    picture[picture[..., 3] == 0] = 0
    assert np.array_equal(compose([Layer(picture, "a")]), picture)
    below, above = noise(*picture.shape[:2], seed=1), Layer(picture, "b", y=-100)
    expected = over(to_float(below), np.zeros(below.shape, np.float32))
    expected[:-100] = over(to_float(picture[100:]), expected[:-100])
    assert np.array_equal(compose([Layer(below, "a"), above], canvas=below.shape[1::-1]), to_bytes(expected))


def test_a_trimmed_canvas_and_a_given_one_are_refused_together():
    with pytest.raises(InvalidRequest, match="either trim or size"):
        arrange([Layer(flat(2, 2, RED), "a")], canvas=(4, 4), trim=True)


def test_a_pixel_far_away_is_trimmed_without_a_canvas():
    """One that reached so far would take 3 GB."""
    far = MAX_SIDE - 1000
    made = arrange([Layer(flat(1, 1, RED), "a", x=far, y=far)], trim=True, pad=2)
    assert (made.width, made.height) == (5, 5)
    with pytest.raises(InvalidRequest, match="canvas of"):
        arrange([Layer(flat(1, 1, RED), "a"), Layer(flat(1, 1, RED), "b", x=far, y=far)], trim=True)


def test_a_canvas_is_checked_before_any_picture_is_read():
    rectangle = Rectangle(5, -30, 20, 40)
    assert canvas_size([rectangle]) == (25, 10)
    assert canvas_size([rectangle], below=(7, 9)) == (7, 9)
    for rectangle in (Rectangle(29_000, 29_000, 1, 1), Rectangle(0, 0, MAX_SIDE + 1, 1)):
        with pytest.raises(InvalidRequest, match="canvas of"):
            canvas_size([rectangle])


def test_only_what_is_still_seen_after_fading_counts_when_trimming():
    faint = Layer(flat(9, 9, (255, 0, 0, 2)), "faint", opacity=0.2)
    hidden = Layer(flat(9, 9, RED), "hidden", visible=False)
    made = arrange([faint, hidden, Layer(flat(2, 3, RED), "a", x=4, y=5)], trim=True)
    assert (made.width, made.height) == (3, 2)
