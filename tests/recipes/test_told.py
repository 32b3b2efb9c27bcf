"""What is said of a drawing: with what, by what two differ, under which licences."""

from typing import Any

import pytest

from layerdiffuse_mcp.families.registry import LAYER_FILES
from layerdiffuse_mcp.recipes.told import licence_words, told, told_apart

STAGE = {"method": "layer_sd15_joint", "sampler": "Euler", "schedule": "Karras", "steps": 20, "guidance_scale": 7.0}
CONTROL = {"model": "canny", "strength": 0.7, "start": 0.0, "end": 0.5, "preprocess": "canny"}


def recipe(**fields: Any) -> dict[str, Any]:
    return {"request": {"prompt": "a cat", "seed": 1, "stages": [STAGE], **fields}}


SAID: dict[str, tuple[dict[str, Any], str]] = {
    "nothing beside": ({}, ""),
    "a LoRA": ({"prompt": "<lora:pastel:0.8>a cat"}, ", LoRA pastel 0.8"),
    "a control": ({"control": [CONTROL]}, ", control canny 0.7, canny map, 0-0.5 of the steps"),
    "a reference": ({"reference": {"model": "plus", "strength": 0.6}}, ", reference plus 0.6"),
    "detail": ({"detail": {"scale": 2, "strength": 0.3}}, ", detail 2x by 0.3"),
}


@pytest.mark.parametrize("case", SAID)
def test_one_line_says_with_what_is_drawn(case: str):
    fields, more = SAID[case]
    assert told(recipe(**fields)) == f"layer_sd15_joint, 20 steps, guidance 7{more}"


def test_of_a_whole_recipe_model_sampler_and_seed_are_said_too():
    assert told(recipe(model="tiny"), whole=True) == (
        "tiny, layer_sd15_joint, 20 steps, guidance 7, Euler Karras, seed 1"
    )


def test_of_a_picture_that_is_changed_the_strength_is_said():
    assert told(recipe(strength=0.5) | {"pictures": {"image": {}}}).endswith(", strength 0.5")
    enlarged = recipe(strength=0, detail={"scale": 2, "strength": 0.3}) | {"pictures": {"image": {}}}
    assert told(enlarged).endswith(", detail 2x by 0.3")


def test_stages_that_agree_are_said_once():
    other = STAGE | {"method": "layer_sd15_fg2bg", "steps": 10}
    assert told(recipe(stages=[STAGE, other])) == "layer_sd15_joint + layer_sd15_fg2bg, 20 + 10 steps, guidance 7"


def test_drawings_are_told_apart_by_what_differs_alone():
    assert told_apart([recipe(control=[CONTROL | {"end": 1.0}]), recipe(seed=2)]) == [
        "control canny 0.7, canny map, seed 1",
        "no control, seed 2",
    ]
    assert told_apart([recipe(), recipe()]) == ["", ""]
    assert told_apart([recipe(), {}])[1].startswith("no method")


@pytest.mark.parametrize("given", [{}, {"request": None}, {"request": {"stages": []}}, {"request": {"stages": "x"}}])
def test_a_recipe_that_cannot_be_read_says_nothing(given: dict[str, Any]):
    assert told(given) == ""


def test_a_name_of_any_length_is_cut():
    assert len(told(recipe(reference={"model": "x" * 4000, "strength": 1}))) < 120


def test_files_of_one_licence_are_named_together():
    layer, other = list(LAYER_FILES)[:2]
    said = licence_words({"model": "unknown", layer: "mit", other: "mit", "ink": "cc-by-nc-4.0", "canny": "unknown"})
    assert said == "base, canny unknown; layer files mit; ink cc-by-nc-4.0 (not for commercial use)"
