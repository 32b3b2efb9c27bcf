"""What a layer's fields do to its pixels."""

import numpy as np
import pytest

from layerdiffuse_mcp.api.layers import LayerOptions, Shadow
from layerdiffuse_mcp.images.alpha import defringe, halo
from layerdiffuse_mcp.images.layout import Shape
from layerdiffuse_mcp.images.transform import resampled, shadow_of, tint, transformed, turned

RED, BLUE, WHITE = (255, 0, 0, 255), (0, 0, 255, 255), (255, 255, 255, 255)


def flat(height, width, rgba):
    return np.tile(np.array(rgba, np.uint8), (height, width, 1))


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)


def readied(picture, **fields):
    layer = LayerOptions(**fields)
    return transformed(picture.copy(), layer, Shape.of(picture.shape[1::-1], layer))


def test_a_layer_without_fields_is_the_picture_itself():
    assert np.array_equal(readied(noise(9, 13)), noise(9, 13))


def test_scaling_and_turning_bleed_no_hidden_colour():
    picture = flat(40, 40, (0, 255, 0, 0))
    picture[:, :21] = RED
    for made in (resampled(picture, (15, 15)), resampled(picture, (76, 76)), turned(picture, 33)):
        assert made[..., 1].max() == 0
        assert made[made[..., 3] > 0][:, 0].min() == 255


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"flip": "horizontal"}, lambda p: p[:, ::-1]),
        ({"flip": "vertical"}, lambda p: p[::-1]),
        ({"flip": "both"}, lambda p: p[::-1, ::-1]),
        ({"flip": "none"}, lambda p: p),
        ({"rotate": 90}, lambda p: np.rot90(p, -1)),
        ({"rotate": -90}, lambda p: np.rot90(p)),
        ({"rotate": 180}, lambda p: p[::-1, ::-1]),
        ({"width": 5, "height": 9, "fit": "cover"}, lambda p: p[:, 4:9]),
    ],
)
def test_mirroring_quarter_turns_and_cropping_are_exact(fields, expected):
    picture = noise(9, 13)
    assert np.array_equal(readied(picture, **fields), expected(picture))


def test_turning_is_clockwise_about_the_centre_and_cuts_nothing():
    picture = np.zeros((41, 41, 4), np.uint8)
    picture[0:9, 16:25] = RED  # at the top
    made = turned(picture, 45)
    ys, xs = np.nonzero(made[..., 3] > 128)
    middle = (np.array(made.shape[:2]) - 1) / 2
    assert ys.mean() < middle[0] - 8
    assert xs.mean() > middle[1] + 8  # now at the upper right
    assert made[..., 3].sum() / 255 == pytest.approx(81, rel=0.03)


def test_a_turn_there_and_back_gives_the_picture_again():
    y, x = np.mgrid[:61, :61] / 60
    picture = np.stack([x, y, 1 - x, np.exp(-8 * ((x - 0.5) ** 2 + (y - 0.5) ** 2))], axis=-1)
    picture = np.rint(picture * 255).astype(np.uint8)
    back = turned(turned(picture, 25), -25)
    top, left = ((side - 61) // 2 for side in back.shape[:2])
    inner = back[top : top + 61, left : left + 61][15:45, 15:45].astype(int)
    assert np.abs(inner - picture[15:45, 15:45]).max() <= 6


def test_a_tint_gives_its_hue_and_keeps_light_shade_and_alpha():
    picture = np.array([[RED, WHITE, (0, 0, 0, 255), (128, 128, 128, 90)]], np.uint8)
    before = picture.copy()
    tint(picture, (0.0, 0.3, 1.0))
    luma = np.array([0.3, 0.59, 0.11])
    assert np.abs(picture[..., :3] @ luma - before[..., :3] @ luma).max() <= 1
    assert np.array_equal(picture[..., 3], before[..., 3])
    assert picture[0, 1].tolist() == [*WHITE]
    assert picture[0, 2].tolist() == [0, 0, 0, 255]
    red, green, blue = picture[0, 0, :3].tolist()
    assert blue > green > red


def test_a_tint_of_none_is_none():
    assert np.array_equal(readied(noise(4, 4), tint="none"), noise(4, 4))


def test_a_cleaned_edge_has_no_halo():
    y, x = np.mgrid[:64, :64]
    alpha = np.clip((24 - np.hypot(x - 32, y - 32)) / 4 + 0.5, 0, 1)
    picture = np.zeros((64, 64, 4), np.uint8)
    picture[..., :3] = np.rint(255 - alpha[..., None] * (255 - np.array((200, 30, 30))))  # still mixed with white
    picture[..., 3] = np.rint(alpha * 255)
    assert "light halo" in halo(picture).describe()
    solid = picture[..., 3] == 255
    before = picture.copy()
    defringe(picture)
    assert halo(picture).describe() == "no halo"
    assert np.array_equal(picture[solid], before[solid])
    assert np.array_equal(picture[..., 3], before[..., 3])
    assert picture[32, 9, :3].tolist() == [200, 30, 30]


def test_smoke_without_a_solid_part_stays_when_edges_are_cleaned():
    picture = noise(30, 30)
    picture[..., 3] = picture[..., 3] % 200
    before = picture.copy()
    defringe(picture)
    assert np.array_equal(picture, before)


def test_a_shadow_without_blur_is_the_silhouette_in_its_colour():
    picture = np.zeros((10, 12, 4), np.uint8)
    picture[2:5, 3:9] = (1, 2, 3, 77)
    shade, margin = shadow_of(picture, Shadow(blur=0, colour="#102030"))
    assert margin == 0
    assert (shade[..., :3] == (16, 32, 48)).all()
    assert np.array_equal(shade[..., 3], picture[..., 3])


def test_a_shadow_spreads_and_fades_as_far_as_it_says_and_loses_nothing():
    picture = flat(40, 40, WHITE)
    shade, margin = shadow_of(picture, Shadow(blur=0, spread=5))
    assert margin == 5
    assert shade.shape[:2] == (50, 50)
    assert (shade[25, :, 3] == 255).all()
    assert shade[0, 0, 3] == 0  # rounded corners
    soft, margin = shadow_of(picture, Shadow(blur=8))
    assert margin == 12
    assert soft[..., 3].sum() / (40 * 40 * 255) == pytest.approx(1, abs=0.01)
    profile = soft[32, :, 3].astype(int)
    assert (np.diff(profile[:32]) >= 0).all()
    assert profile[12] == pytest.approx(127, abs=16)  # half at the old edge
    assert profile[0] <= 1
