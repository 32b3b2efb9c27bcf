"""What the base learns from: subjects, looks and captions, and pictures drawn by our own code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from training import data
from training.captions import caption, forms
from training.common import autocast
from training.concepts import concepts
from training.latents import Drawn, shown
from training.materials import COLOURS, MATERIALS
from training.sprites import SPRITES, sprites
from training.vocabulary import LOOKS, SHARES, Look, Subject, vocabulary

SPRITE_WORDS = (
    "sword", "shield", "potion", "coin", "gem", "key", "bomb", "chest", "scroll", "bow", "staff", "helmet", "heart",
    "torch", "map",
)  # fmt: skip


def square(words: list[str], colour: tuple[int, int, int] = (200, 120, 40)) -> Subject:
    picture = np.zeros((128, 128, 4), np.uint8)
    picture[32:96, 32:96] = (*colour, 255)
    return Subject(words, {"3d": picture})


@pytest.mark.parametrize("word", SPRITE_WORDS)
def test_what_sprites_are_asked_of_is_a_subject_under_its_own_word(word: str):
    assert [words[0] for words in concepts(wide=True).values()].count(word) == 1


def test_no_words_are_those_of_two_subjects():
    said = [word for words in concepts(wide=True).values() for word in words]
    assert "" not in said
    assert len(said) == len({*said})


@pytest.mark.extras
@pytest.mark.parametrize(("name", "style", "svg"), [*sprites()])
def test_a_sprite_fills_its_picture_in_both_styles(name: str, style: str, svg: str):
    alpha = data.render_svg(svg)[..., 3]
    rows, columns = np.nonzero(alpha.any(1))[0], np.nonzero(alpha.any(0))[0]
    assert name in concepts(wide=True)
    assert style in ("3d", "flat")
    assert max(np.ptp(rows), np.ptp(columns)) > 0.85 * data.SIZE  # as the emoji do
    assert alpha[0].max() == alpha[-1].max() == 0  # and is not cut off


def test_each_sprite_has_a_style_of_each_kind():
    assert sorted((name, style) for name, style, _ in sprites()) == sorted(
        (name, style) for name in SPRITES for style in ("3d", "flat")
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["red apple", "apple", "fruit"], ["a red apple", "red apple", "an apple"]),
        (["key"], ["a key", "key"]),
        (["french fries"], ["french fries"]),
    ],
)
def test_a_subject_is_called_by_three_forms_at_most(words: list[str], expected: list[str]):
    assert forms(words) == expected
    rng = np.random.default_rng(0)
    assert {caption(words, rng).removesuffix(", 3d") for _ in range(200)} == {*expected}


def test_a_colour_takes_the_place_of_the_one_in_the_name():
    rng = np.random.default_rng(0)
    blue = Look("3d", "blue")
    assert {square(["red apple", "apple"]).caption(rng, blue).removesuffix(", 3d") for _ in range(50)} == {
        "a blue apple", "blue apple",
    }  # fmt: skip
    assert not square(["golden crown"]).has(blue)
    assert square(["golden crown"]).has(Look("3d", "glass"))


@pytest.mark.parametrize("name", COLOURS)
def test_a_colour_keeps_light_and_dark_and_alpha(name: str):
    ramp = torch.linspace(0.1, 0.9, 128).expand(1, 3, 128, 128)
    alpha = torch.ones(1, 1, 128, 128)
    made = MATERIALS[name](torch.cat([ramp, alpha], 1), torch.Generator())
    light = made[0, :3].mean((0, 1))
    assert torch.equal(made[:, 3:], alpha)
    assert bool((light.diff() >= -1e-5).all())
    assert light[-1] > light[0]
    middle = made[0, :3, :, 62:66].mean((1, 2))
    assert (middle - torch.tensor(COLOURS[name])).abs().max() < 0.1


def test_the_looks_shares_are_all_of_the_pictures():
    assert len(SHARES) == len(LOOKS)
    assert sum(SHARES) == pytest.approx(1)


def test_every_subject_is_drawn_in_turn_and_colours_only_as_they_were_encoded():
    rng = np.random.default_rng(0)
    subjects = [square(["box"]), square(["golden box"]), square(["crate"])]
    facts = [(number, place) for number, subject in enumerate(subjects) for place in shown(subject, rng)]
    number, place = torch.tensor(facts).unbind(1)
    drawn = [*Drawn(number, place)(rng, 3 * 400)]
    assert all(sorted(subject for _, subject, _ in drawn[i : i + 3]) == [0, 1, 2] for i in range(0, len(drawn), 3))
    assert {(subject, look) for _, subject, look in drawn} == {*facts}
    assert all(facts[row] == (subject, look) for row, subject, look in drawn)


def test_what_only_noto_has_is_learnt_from_its_picture_and_never_held_out(tmp_path: Path):
    (name,) = data.NO_3D
    assert not any(data.held_out(style, name, {name}) for style in ("3d", "noto"))
    picture = square([name]).pictures["3d"]
    np.save(tmp_path / "pictures.npy", picture[None])
    (tmp_path / "pictures.json").write_text(f'[{{"name": "{name}", "style": "noto", "held_out": false}}]')
    assert np.array_equal(vocabulary(tmp_path)[0].pictures["3d"], picture)


def test_half_precision_is_for_processors_that_have_it(monkeypatch: pytest.MonkeyPatch):
    from training import common

    for has in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: {"avx2": True, "avx512_bf16": has})
        monkeypatch.setattr(common, "device", lambda: torch.device("cpu"))
        common.has_bfloat16.cache_clear()
        with autocast():
            assert torch.is_autocast_enabled("cpu") == has
    common.has_bfloat16.cache_clear()
