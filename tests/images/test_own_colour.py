"""The colour of soft parts, freed from a background that nobody gave: twenty composites whose colour is known."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from layerdiffuse_mcp.images import own_colour
from layerdiffuse_mcp.images.own_colour import with_own_colour
from tests.images.composites import SIDE, Subject, scenery, subjects

SUBJECTS = subjects()


def off(colour: np.ndarray, subject: Subject) -> float:
    """How far colours are from the true ones, of 255: the mean over soft pixels, by how much of each is seen."""
    soft = (subject.alpha > 4 / 255) & (subject.alpha < 251 / 255)
    away = np.abs(colour[..., :3] - 255 * subject.colour).mean(axis=-1)
    return float(np.average(away[soft], weights=subject.alpha[soft]))


@pytest.mark.parametrize("number", range(20))
def test_soft_parts_have_the_subjects_own_colour(number: int):
    subject = SUBJECTS[number]
    picture = subject.on(scenery(number))
    assert off(picture, subject) > 12
    assert off(with_own_colour(picture, subject.alpha), subject) <= 6


def patches(seed: int) -> np.ndarray:
    """Colours that change within the subject, (H, W, 3), 0 to 1."""
    random = np.random.default_rng(seed)
    coarse = np.kron(random.random((5, 5, 3)), np.ones((SIDE // 5, SIDE // 5, 1)))
    return np.clip(cv2.GaussianBlur(coarse, (0, 0), 6) + random.normal(0, 0.04, coarse.shape), 0, 1)


def test_a_subject_of_many_colours_keeps_them():
    """A third of the background's share and more is gone even where the subject is as full of detail."""
    many = [replace(subject, colour=patches(number)) for number, subject in enumerate(SUBJECTS)]
    pictures = [subject.on(scenery(number)) for number, subject in enumerate(many)]
    before = np.mean([off(*pair) for pair in zip(pictures, many, strict=True)])
    cleaned = [with_own_colour(picture, subject.alpha) for picture, subject in zip(pictures, many, strict=True)]
    assert np.mean([off(*pair) for pair in zip(cleaned, many, strict=True)]) < before * 2 / 3


def test_opaque_pixels_stay_and_invisible_ones_hold_nothing():
    subject = SUBJECTS[0]
    picture = subject.on(scenery(0))
    rgba = with_own_colour(picture, subject.alpha)
    assert np.array_equal(rgba[subject.alpha == 1][:, :3], picture[subject.alpha == 1])
    assert not rgba[rgba[..., 3] == 0].any()


def test_tiles_leave_no_seam(monkeypatch: pytest.MonkeyPatch):
    subject = SUBJECTS[4]
    picture = subject.on(scenery(4))
    whole = with_own_colour(picture, subject.alpha).astype(int)
    monkeypatch.setattr(own_colour, "SIDE", 48)
    assert np.abs(with_own_colour(picture, subject.alpha) - whole).max() <= 1


@pytest.mark.parametrize("cover", [0.0, 0.5, 1.0])
def test_an_even_alpha_is_no_division_by_nothing(cover: float):
    picture = SUBJECTS[0].on(scenery(0))
    rgba = with_own_colour(picture, np.full((SIDE, SIDE), cover))
    assert (rgba[..., 3] == round(255 * cover)).all()
    if cover == 1:
        assert np.array_equal(rgba[..., :3], picture)
