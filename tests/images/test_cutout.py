"""Cutting out what stands before a known background, measured on twenty cut-outs that are known."""

import numpy as np
import pytest

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.cutout import Cut, border_colour, cut_from_known, cut_from_two
from tests.images.composites import BLACK, BLUE, GREEN, SIDE, WHITE, Subject, scenery, subjects

SUBJECTS = {subject.name: subject for subject in subjects()}
GROUNDS = {"green": GREEN, "white": WHITE, "black": BLACK, "blue": BLUE}
VISIBLE, OPAQUE = 4 / 255, 251 / 255


def alpha_error(cut: Cut, subject: Subject) -> float:
    """Mean over all pixels, of 255."""
    return float(np.abs(cut.rgba[..., 3] - 255 * subject.alpha).mean())


def colour_error(cut: Cut, subject: Subject) -> float:
    """Mean over what is partly seen through, as much as it is seen, of 255."""
    soft = (subject.alpha > VISIBLE) & (subject.alpha < OPAQUE)
    off = np.abs(cut.rgba[..., :3] - 255 * subject.colour).mean(axis=-1)
    return float(np.average(off[soft], weights=subject.alpha[soft]))


def test_there_are_twenty_composites_whose_alpha_is_soft():
    assert len(SUBJECTS) == 20
    for subject in SUBJECTS.values():
        assert ((subject.alpha > VISIBLE) & (subject.alpha < OPAQUE)).sum() > 300


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_a_subject_before_one_colour_is_cut_out(name: str, ground: str):
    subject = SUBJECTS[name]
    picture = subject.on(GROUNDS[ground])
    cut = cut_from_known(picture, border_colour(picture), translucent=subject.translucent)
    assert alpha_error(cut, subject) <= 4
    assert colour_error(cut, subject) <= 6


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_subject_before_a_known_picture_is_cut_out(name: str):
    subject = SUBJECTS[name]
    ground = np.rint(255 * scenery(list(SUBJECTS).index(name))).astype(np.uint8)
    cut = cut_from_known(subject.on(ground / 255), ground, translucent=subject.translucent)
    assert alpha_error(cut, subject) <= 4
    assert colour_error(cut, subject) <= 6


@pytest.mark.parametrize("name", SUBJECTS)
def test_a_subject_before_two_backgrounds_is_cut_out_exactly(name: str):
    subject = SUBJECTS[name]
    cut = cut_from_two(subject.on(BLACK), subject.on(WHITE), BLACK, WHITE)
    assert alpha_error(cut, subject) <= 1
    assert colour_error(cut, subject) <= 6


def test_two_background_pictures_are_as_good_as_two_colours():
    subject = SUBJECTS["glass 1"]
    grounds = [np.rint(255 * scenery(seed)).astype(np.uint8) // 2 + 127 * seed for seed in (0, 1)]
    cut = cut_from_two(*(subject.on(ground / 255) for ground in grounds), *grounds)
    assert alpha_error(cut, subject) <= 1


def test_noise_of_a_lossy_file_is_no_subject():
    subject = SUBJECTS["disc 0"]
    random = np.random.default_rng(0)
    noisy = subject.on(GREEN) + random.integers(-8, 9, (SIDE, SIDE, 3))
    cut = cut_from_known(np.clip(noisy, 0, 255).astype(np.uint8), border_colour(subject.on(GREEN)), noise=12 / 255)
    assert alpha_error(cut, subject) <= 4
    assert cut.rgba[0, 0, 3] == 0


def test_what_has_the_colour_of_the_background_inside_the_subject_is_counted():
    subject = SUBJECTS["disc 0"]
    picture = subject.on(GREEN)
    picture[70:90, 70:90] = picture[0, 0]
    assert cut_from_known(picture, GREEN).enclosed == pytest.approx(400 / SIDE**2)
    assert cut_from_known(subject.on(GREEN), GREEN).enclosed == 0


def test_nothing_but_background_leaves_nothing():
    picture = np.full((40, 50, 3), 200, np.uint8)
    cut = cut_from_known(picture, border_colour(picture))
    assert not cut.rgba.any()


def test_a_picture_without_any_background_is_kept():
    picture = np.full((40, 50, 3), 200, np.uint8)
    cut = cut_from_known(picture, BLACK)
    assert (cut.rgba[..., 3] == 255).all()
    assert np.array_equal(cut.rgba[..., :3], picture)


def test_a_border_of_several_colours_is_no_background_colour():
    with pytest.raises(InvalidRequest, match="not one colour"):
        border_colour(np.rint(255 * scenery(0)).astype(np.uint8))


def test_backgrounds_that_are_alike_tell_nothing():
    picture = SUBJECTS["disc 0"].on(WHITE)
    with pytest.raises(InvalidRequest, match="too alike"):
        cut_from_two(picture, picture, WHITE, (0.98, 1.0, 1.0))


def test_pictures_of_different_sizes_are_refused_with_their_sizes():
    picture = SUBJECTS["disc 0"].on(WHITE)
    with pytest.raises(InvalidRequest, match="160x160 and 150x160"):
        cut_from_known(picture, picture[:, :150])
    with pytest.raises(InvalidRequest, match="160x160 and 160x120"):
        cut_from_two(picture, picture[:120], BLACK, WHITE)


def test_nothing_is_left_of_the_colour_where_nothing_is_seen():
    cut = cut_from_known(SUBJECTS["hair 0"].on(WHITE), WHITE)
    assert not cut.rgba[cut.rgba[..., 3] == 0].any()
