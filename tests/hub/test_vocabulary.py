"""A base that knows few words says so: of a prompt that it has no subject for, in whatever language."""

import dataclasses

import pytest

from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.hub.vocabulary import Vocabulary, vocabulary_of
from layerdiffuse_mcp.settings import Settings
from training.backgrounds import scenes


@pytest.fixture
def pocket(settings: Settings) -> Vocabulary:
    known = vocabulary_of(catalog.find("pocket", settings))
    assert known is not None
    return known


def test_every_phrase_that_was_learnt_is_known(pocket: Vocabulary):
    phrases = [phrase for phrases in pocket.subjects.values() for phrase in phrases]
    assert [phrase for phrase in phrases if pocket.doubt(f"a shiny {phrase}, 3d")] == []
    assert pocket.scenes == tuple(scenes())
    assert [scene for scene in scenes() if pocket.doubt(scene, scenes=True)] == []


@pytest.mark.parametrize("prompt", [
    "three CATS", "a (red apple:1.3)", "cherry", "mushrooms, flat", "a dragon\u2019s eye", "<lora:x:1> [fish]",
    "a glass", "a glass of water", "an orange, ripe", "a glass fish",
])  # fmt: skip
def test_a_subject_is_known_however_it_is_written(pocket: Vocabulary, prompt: str):
    assert pocket.doubt(prompt) is None


@pytest.mark.parametrize(
    ("prompt", "near"),
    [
        ("horn", "corn"), ("gold horn", "corn"), ("a glass sofa in the snow", "glass"),
        ("an orange sofa", "orange"),
        ("icon of a hous", "house"), ("ein roter Apfel", "rooster"),
        ("die Katze", ""), ("motorcyle", "motorcycle"),
    ],
)  # fmt: skip
def test_a_prompt_without_a_subject_is_doubted_and_the_nearest_is_named(pocket: Vocabulary, prompt: str, near: str):
    said = pocket.doubt(prompt) or ""
    assert f"pocket knows no subject that {prompt!r} names" in said
    assert near in said
    assert "list_models" in said


@pytest.mark.parametrize("prompt", ["赤いリンゴ", "красное яблоко", "épée"])
def test_a_language_that_it_never_saw_is_doubted(pocket: Vocabulary, prompt: str):
    assert "It has learnt English alone" in (pocket.doubt(prompt) or "")


@pytest.mark.parametrize("prompt", ["knight 0", "a harp", "icon of a hous", "knight walking, left foot forward", "🍎"])
def test_what_may_be_english_is_doubted_and_not_called_foreign(pocket: Vocabulary, prompt: str):
    assert "English" not in (pocket.doubt(prompt) or "English")


def test_what_is_spelled_otherwise_is_not_named(pocket: Vocabulary):
    for prompt in ("ein Igel", "a harp"):
        assert "by spelling" not in (pocket.doubt(prompt) or "")


def test_a_scene_is_no_subject_where_none_is_drawn(pocket: Vocabulary):
    assert pocket.doubt("a sunny meadow")
    assert pocket.doubt("a sunny meadow", scenes=True) is None


@pytest.mark.parametrize("prompt", ["", "   ", "<lora:x:1>", "(" * 5000, "sword " * 20_000, "\ud800", "\0"])
def test_no_prompt_is_too_odd_to_be_looked_at(pocket: Vocabulary, prompt: str):
    assert len(pocket.doubt(prompt) or "") < 600


def test_a_text_finds_subjects_by_all_of_their_phrases(pocket: Vocabulary):
    assert list(pocket.matching("Apple").subjects) == ["red apple", "green apple", "pineapple"]
    assert "t-rex" in pocket.matching("dinosaur").subjects
    assert pocket.matching("wooden").scenes == ("wooden table",)
    empty = pocket.matching("zzz")
    assert not any(getattr(empty, field.name) for field in dataclasses.fields(empty) if field.name != "model")


def test_a_base_without_a_list_is_not_doubted(settings: Settings):
    assert vocabulary_of(catalog.find("realvisxl-v4", settings)) is None
