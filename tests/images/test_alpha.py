"""Alpha facts, compositing and halos, as a user would judge them."""

import re

import numpy as np
import pytest

from layerdiffuse_mcp.images.alpha import (
    HALO_SLIGHT,
    TILE_PIXELS,
    Bytes,
    alpha_drift,
    alpha_facts,
    checkerboard,
    composite,
    halo,
    on_grey,
    on_level,
    over,
    padded_rgb,
    to_float,
)
from layerdiffuse_mcp.images.describe import describe


def test_alpha_that_is_elsewhere_is_told_as_a_share_of_what_was() -> None:
    before = np.zeros((40, 40, 4), np.uint8)
    before[10:30, 10:30, 3] = 200
    assert alpha_drift(before, before) == 0
    assert alpha_drift(before, np.roll(before, 1, axis=0)) == pytest.approx(0.1)  # a row of twenty goes, one comes
    assert alpha_drift(np.zeros_like(before), np.zeros_like(before)) == 0


def disc(size=64, colour=(200, 30, 30), radius=20, soft=4.0, centre=(32, 32)):
    """A soft-edged disc of one colour on transparency, (size, size, 4), uint8."""
    y, x = np.mgrid[:size, :size]
    distance = np.hypot(x - centre[0], y - centre[1])
    alpha = np.clip((radius - distance) / soft + 0.5, 0, 1)
    rgba = np.zeros((size, size, 4), np.uint8)
    rgba[..., :3] = colour
    rgba[..., 3] = np.rint(alpha * 255)
    return rgba


def test_facts_tell_the_shares_and_the_box_of_what_is_visible():
    picture = np.zeros((10, 20, 4), np.uint8)
    picture[2:6, 5:15, 3] = 255
    picture[6, 5:15, 3] = 128
    facts = alpha_facts(picture)
    assert facts.opaque == 0.2
    assert facts.partial == 0.05
    assert facts.transparent == 0.75
    assert facts.bbox == (5, 2, 15, 7)
    assert facts.edges_touched == ()
    assert facts.has_transparency
    assert describe(facts) == "75% transparent, 5% partial; subject touches no edge"


def test_barely_visible_noise_is_not_taken_for_a_subject():
    picture = np.full((16, 16, 4), 4, np.uint8)
    facts = alpha_facts(picture)
    assert facts.bbox is None
    assert facts.transparent == 1.0
    assert describe(facts) == "100% transparent: nothing is visible"


@pytest.mark.parametrize("alpha", [255, 251])
def test_an_opaque_picture_has_no_transparency(alpha):
    facts = alpha_facts(np.full((8, 8, 4), alpha, np.uint8))
    assert not facts.has_transparency
    assert describe(facts) == "fully opaque: no transparency"


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (1, "<1% transparent, 0% partial, >99% opaque"),
        (2000, "<1% transparent, 0% partial, >99% opaque"),
        (6000, "1% transparent, 0% partial, 99% opaque"),
    ],
)
@pytest.mark.parametrize("kind", ["foreground", "composition"])
def test_a_hole_is_never_called_fully_opaque_however_small(pixels: int, words: str, kind: str):
    picture = np.full((800, 800, 4), 255, np.uint8)
    picture[10:, :, 3].flat[:pixels] = 0
    facts = alpha_facts(picture)
    assert not facts.has_transparency
    assert facts.opaque < 1
    assert describe(facts, kind) == words


def test_a_picture_without_an_alpha_channel_counts_as_opaque():
    assert not alpha_facts(np.zeros((8, 8, 3), np.uint8)).has_transparency


@pytest.mark.parametrize(
    ("area", "words"),
    [
        (np.s_[3:10, 3:7], "the bottom edge"),
        (np.s_[0:7, 0:7], "the top and left edges"),
        (np.s_[0:10, 3:10], "the top, right and bottom edges"),
        (np.s_[0:10, 0:10], "all four edges"),
    ],
)
def test_touched_edges_are_named(area, words):
    picture = np.zeros((10, 10, 4), np.uint8)
    picture[area] = 128
    assert describe(alpha_facts(picture)).endswith(f"subject touches {words}")


def test_a_small_share_is_not_rounded_to_nothing():
    picture = np.zeros((100, 100, 4), np.uint8)
    picture[:60, :, 3] = 255
    picture[60, :10, 3] = 100
    assert "<1% partial" in describe(alpha_facts(picture))


def test_colour_continues_below_transparency_and_stays_where_it_is_visible():
    picture = disc(colour=(200, 30, 30))
    picture[picture[..., 3] == 0] = 0
    filled = padded_rgb(picture)
    assert np.allclose(filled, np.array([200, 30, 30]) / 255, atol=0.01)
    assert filled.dtype == np.float32


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 3), (37, 64)])
def test_padding_works_for_any_size_and_for_nothing_visible(shape):
    filled = padded_rgb(np.zeros((*shape, 4), np.uint8))
    assert filled.shape == (*shape, 3)
    assert np.isfinite(filled).all()


def test_flattening_in_whole_levels_takes_the_nearest_for_every_colour_and_alpha():
    colour, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    for level in (0, 127, 255):
        flat = on_level(np.stack([colour, colour, colour, alpha], axis=-1), level)
        share = alpha.astype(np.float64) / 255
        assert np.array_equal(flat[..., 1], np.rint(colour * share + level * (1 - share)))
        assert np.array_equal(flat[..., 0], flat[..., 2])


def test_flattening_on_grey_shows_grey_where_nothing_is():
    flat = on_grey(np.array([[[255, 0, 0, 0], [255, 0, 0, 255]]], np.uint8))
    assert flat.tolist() == [[[0.5, 0.5, 0.5], [1.0, 0.0, 0.0]]]


def test_over_keeps_straight_colour():
    half_red = np.array([[[1, 0, 0, 0.5]]], np.float32)
    blue = np.array([[[0, 0, 1, 1]]], np.float32)
    nothing = np.array([[[0.3, 0.4, 0.5, 0]]], np.float32)
    assert over(half_red, blue)[0, 0].tolist() == [0.5, 0, 0.5, 1]
    assert over(half_red, nothing)[0, 0].tolist() == [1, 0, 0, 0.5]
    assert over(nothing, half_red)[0, 0].tolist() == [1, 0, 0, 0.5]
    assert over(nothing, nothing)[0, 0].tolist() == [0, 0, 0, 0]


def test_over_is_associative():
    a, b, c = np.random.default_rng(0).random((3, 8, 8, 4), np.float32)
    assert np.allclose(over(over(a, b), c), over(a, over(b, c)), atol=1e-6)


def test_compositing_on_black_and_white_brackets_the_alpha():
    picture = disc()
    black, white = composite(picture, (0, 0, 0)), composite(picture, (1, 1, 1))
    recovered = 1 - (to_float(white) - to_float(black)).mean(axis=-1)
    assert np.abs(recovered - picture[..., 3] / 255).max() < 1 / 255


def test_a_checkerboard_has_squares_of_two_tones():
    board = checkerboard(32, 48, square=16)
    assert board.shape == (32, 48, 3)
    assert board[0, 0, 0] > board[0, 16, 0] == board[16, 0, 0] < board[16, 16, 0]


def test_a_clean_cut_out_has_no_halo():
    assert halo(disc()).describe() == "no halo"


def test_a_cut_out_with_its_old_background_in_the_edge_has_a_halo_of_that_tone():
    picture = disc(colour=(90, 90, 90))
    alpha = picture[..., 3:] / 255
    for tone, words in ((255, "light"), (0, "dark")):
        bled = picture.copy()
        bled[..., :3] = np.rint(90 * alpha + tone * (1 - alpha))
        assert words in halo(bled).describe()


def _blob(n: int, edge: tuple[int, int, int] | None = None) -> Bytes:
    """A subject of several colours with a soft edge; it may be drawn in another colour there, with some grain."""
    rows, columns = np.mgrid[-50:50, -50:50].astype(float)
    around = np.arctan2(rows, columns)
    inside = 32 + 3 * np.sin((3 + n % 4) * around) - np.hypot(rows, columns)
    grain = np.random.default_rng(n)
    hues = grain.integers(90, 230, (3, 3))
    rgba = np.zeros((100, 100, 4), np.uint8)
    rgba[..., :3] = hues[np.floor((around + np.pi) / 6.3 * 3).astype(int) % 3]
    rgba[..., 3] = np.rint(255 * np.clip(inside / 6 + 0.5, 0, 1))
    if edge is not None:
        drawn = inside < 5
        rgba[drawn, :3] = np.clip(np.array(edge) + grain.normal(0, 12, (int(drawn.sum()), 3)), 0, 255)
    return rgba


EDGES = {
    "dark": (20, 15, 25), "black": (0, 0, 0), "red": (150, 20, 30), "purple": (60, 10, 90), "brown": (70, 40, 20),
    "navy": (10, 10, 80), "white": (255, 255, 255), "cream": (245, 235, 200), "green": (20, 60, 20),
    "grey": (40, 40, 40),
}  # fmt: skip
"""Colours that a subject may be outlined in, and that a background may have."""


@pytest.mark.parametrize("name", EDGES)
def test_an_outline_of_the_subject_is_no_halo_and_what_a_background_left_is_one(name: str):
    n, colour = [*EDGES].index(name), EDGES[name]
    outlined = halo(_blob(n, colour))
    assert outlined.difference > HALO_SLIGHT
    assert outlined.describe().startswith("no plain halo")
    left = _blob(n)
    alpha = left[..., 3:] / 255
    left[..., :3] = np.rint(left[..., :3] * alpha + np.array(colour) * (1 - alpha))
    assert re.fullmatch(r"(slight|strong) (dark |light )?halo", halo(left).describe())


def test_a_picture_without_soft_pixels_has_nothing_to_compare():
    assert halo(np.full((8, 8, 4), 255, np.uint8)).soft == 0


def test_facts_and_halo_do_not_depend_on_where_a_picture_is_cut_into_tiles():
    whole = disc(size=600, radius=200, centre=(300, 300), soft=60.0)
    whole[..., :3] = np.random.default_rng(0).integers(0, 256, (600, 600, 3))
    apart = 2 * TILE_PIXELS // 600  # rows to the second copy, which so begins in another tile
    twice = np.zeros((apart + 650, 600, 4), np.uint8)
    twice[:600], twice[apart : apart + 600] = whole, whole
    one, two = halo(whole), halo(twice)
    assert two.soft == 2 * one.soft > 0
    assert (two.difference, two.lightness) == pytest.approx((one.difference, one.lightness))
    left, top, right, bottom = alpha_facts(whole).bbox or ()
    assert alpha_facts(twice).bbox == (left, top, right, apart + bottom)


def test_a_picture_of_one_endless_row_is_looked_at_in_pieces():
    row = np.zeros((1, 2 * TILE_PIXELS + 5, 4), np.uint8)
    row[0, TILE_PIXELS - 3 : TILE_PIXELS + 3] = 255
    row[0, TILE_PIXELS + 3] = 128
    assert alpha_facts(row).bbox == (TILE_PIXELS - 3, 0, TILE_PIXELS + 4, 1)
    assert halo(row).soft == 1
