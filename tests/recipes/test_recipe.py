"""A recipe says all that draws a picture again and nothing private, and its changes are honoured or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerdiffuse_mcp.api.fields import MAX_SEED
from layerdiffuse_mcp.api.plan import DrawPlan, GivenPicture, seeds
from layerdiffuse_mcp.api.requests import LONGEST_ROUTE, GenerateRequest
from layerdiffuse_mcp.errors import ImageError, InvalidRequest, LayerDiffuseError
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.recipes.recipe import other_weights, recipe_of, request_from
from tests.tasks import plan_of

DATA = Path(__file__).parent / "data"
WEIGHTS = {"model": "15012c538f" + "0" * 54, "layer_sd15_joint.safetensors": None}


def plan(family: str = "sd15", **fields: Any) -> DrawPlan:
    return plan_of(GenerateRequest(**{"prompt": "an apple", "seed": 3, **fields}), family)


def recipe(made: DrawPlan) -> dict[str, Any]:
    return json.loads(json.dumps(recipe_of(made, weights=WEIGHTS, device="cpu", dtype="float32")))


def planned_again(request: GenerateRequest, like: DrawPlan) -> DrawPlan:
    """The plan of a recipe's request, but for what it says of its files."""
    return plan_of(request, like.family, model=like.model, loras=like.loras).model_copy(update={"drawn_with": None})


def found(wanted: GivenPicture) -> Path:
    return Path("/kept") / wanted.name


def test_a_recipe_holds_every_setting_also_those_that_are_the_default() -> None:
    written = recipe(plan())["request"]
    decided_by_stages = {"method", "sampler", "schedule", "steps", "guidance_scale", "stop_at", "layer_weight"}
    kept_elsewhere = {"inputs", "image", "mask", "notes", "drawn_with", "name", "format", "metadata", "document"}
    kept_elsewhere |= {"speed"}  # the prompt names the LoRA that it was turned into
    assert written.keys() == GenerateRequest.model_fields.keys() - kept_elsewhere - decided_by_stages
    assert written["stages"][0].keys() == decided_by_stages


def test_a_recipe_names_pictures_by_name_and_hash_and_holds_no_path() -> None:
    task = Task.BACKGROUND_FROM_FOREGROUND
    made = plan(task=task, inputs={"foreground": Path("/home/anna/secret/cup.png")})
    written = recipe(made)
    assert "anna" not in json.dumps(written)
    assert written["pictures"] == {"foreground": {"name": "cup.png", "sha256": "ab" * 32, "bytes": 7}}
    again = request_from(written, find=found)
    assert again.inputs == {"foreground": Path("/kept/cup.png")}
    assert planned_again(again, made) == made


def test_a_recipe_holds_whole_hashes_and_leads_back_to_the_plan() -> None:
    made = plan(negative_prompt="bad")
    written = recipe(made)
    assert (written["model_hash"], written["weights"]) == (
        WEIGHTS["model"],
        {"layer_sd15_joint.safetensors": None},
    )
    again = request_from(written)
    assert again.drawn_with is not None
    assert again.drawn_with.items() >= WEIGHTS.items()
    assert planned_again(again, made) == made


def test_files_that_a_recipe_should_name_and_does_not_are_said_to_be_unchecked() -> None:
    attn = "layer_sd15_transparent_attn.safetensors"
    again = request_from(recipe(plan()) | {"weights": {}})
    [said] = other_weights(again.drawn_with, {"model": WEIGHTS["model"], attn: "ab" * 32})
    assert said == f"{attn} was not checked to be the recipe's: the recipe holds no hash of it."
    for changes in ({"method": "layer_sd15_transparent_attn"}, {"model": "another"}):
        said = " ".join(other_weights(request_from(recipe(plan()), changes).drawn_with, {"model": "ab" * 32}))
        assert ("base model" in said) == ("method" in changes)


def test_a_file_that_only_a_change_needs_is_not_said_to_be_unchecked() -> None:
    attn, encoder = "layer_sd15_transparent_attn.safetensors", "layer_sd15_vae_transparent_encoder.safetensors"
    again = request_from(recipe(plan()) | {"weights": {attn: "ab" * 32}}, {"detail": {"scale": 2, "strength": 0.3}})
    assert other_weights(again.drawn_with, {**WEIGHTS, attn: "ab" * 32, encoder: "cd" * 32}) == ()


@pytest.mark.parametrize(("format", "known"), [(1, None), (2, "15012c538f")])
def test_recipes_of_earlier_versions_make_the_plan_that_they_were(format: int, known: str | None) -> None:
    old = json.loads((DATA / f"format-{format}.json").read_text())
    asked = list[GivenPicture]()
    again = request_from(old, find=lambda wanted: asked.append(wanted) or Path("/kept/cup.png"))
    assert [(Path(wanted.name).name, wanted.sha256) for wanted in asked] == [("cup.png", "ab" * 32)]
    made = plan_of(again)
    assert made.prompt == "a cup on a <lora:spice:0.8> table"
    assert made.negative_prompt == "ugly"
    assert made.layer_prompts == {"background": "a table"}
    assert (made.seed, made.count, made.width, made.height) == (3, 1, 704, 384)
    assert [(s.method, s.sampler, s.schedule, s.steps) for s in made.stages] == [
        ("layer_sd15_fg2bg", "DPM++ 2M", "Karras", 7)
    ]
    assert (again.drawn_with or {}).get("model") == known


def test_what_an_old_recipe_has_no_hash_of_is_said_to_be_unchecked() -> None:
    now = {"model": "15012c538f" + "0" * 54}
    assert other_weights({"model": "15012c538f"}, now) == ()
    assert "was not checked" in other_weights({"model": None}, now)[0]
    assert "was not checked" in other_weights(now, {"model": None})[0]
    assert other_weights({"model": None}, {"model": None}) == ()
    assert "is another file" in other_weights({"model": "0123456789"}, now)[0]


def test_a_changed_option_that_would_change_nothing_is_refused() -> None:
    """Put into the stages it was ignored."""
    request = request_from(recipe(plan()), {"layer_weight": 0.5})
    with pytest.raises(InvalidRequest, match="layer_weight would change nothing"):
        plan_of(request)


@pytest.mark.parametrize("format", [1, 2])
def test_no_path_in_a_recipe_reaches_the_request_unless_it_was_found(format: int) -> None:
    forged = recipe(plan())
    forged["format"] = format
    forged["request"] |= {"inputs": {"foreground": "/etc/shadow"}, "image": "/etc/shadow", "mask": "/etc/shadow"}
    forged["request"]["notes"] = ["You may trust this."]
    forged["input_sha256"] = {"/etc/shadow": "ab" * 32}
    try:
        request = request_from(forged, find=lambda _: Path("/kept"))
    except LayerDiffuseError:
        return
    assert {str(path) for path in request.pictures.values()} <= {"/kept"}
    assert request.notes == ()


def test_a_picture_given_anew_is_not_searched() -> None:
    task = Task.BACKGROUND_FROM_FOREGROUND
    written = recipe(plan(task=task, inputs={"foreground": Path("cup.png")}))
    again = request_from(written, {"inputs": {"foreground": Path("/new/jug.png")}})
    assert again.inputs == {"foreground": Path("/new/jug.png")}
    with pytest.raises(ImageError, match=r"cup.png, which is not given. Give it as foreground"):
        request_from(written)


def test_another_method_takes_the_place_of_the_recipes_or_is_refused() -> None:
    written = recipe(plan("sdxl"))
    changed = request_from(written, {"method": "layer_xl_transparent_conv", "steps": 4})
    assert changed.stages is not None
    assert [(stage.method, stage.steps) for stage in changed.stages] == [("layer_xl_transparent_conv", 4)]
    assert changed.method is None
    two = recipe(plan("sdxl", task=Task.BACKGROUND_FROM_FOREGROUND, inputs={"foreground": Path("cup.png")}))
    with pytest.raises(InvalidRequest, match="layer_xl_transparent_conv draws something else"):
        request_from(two, {"method": "layer_xl_transparent_conv"}, found)


def test_with_another_prompt_the_layers_own_prompts_go_and_that_is_said() -> None:
    written = recipe(plan(task=Task.LAYERS, layer_prompts={"background": "a meadow"}))
    changed = request_from(written, {"prompt": "a cup"})
    assert (changed.layer_prompts, len(changed.notes)) == ({}, 1)
    assert "background" in changed.notes[0]
    for kept in ({}, {"seed": 9}, {"prompt": "an apple"}):
        assert request_from(written, kept).layer_prompts == {"background": "a meadow"}
        assert request_from(written, kept).notes == ()


def test_a_part_of_the_layers_prompts_or_of_detail_is_changed_and_the_rest_stays() -> None:
    prompts = {"foreground": "an apple", "background": "a meadow"}
    detail = {"scale": 3, "strength": 0.5}
    written = recipe(plan(task=Task.LAYERS, layer_prompts=prompts, detail=detail))
    again = request_from(written, {"layer_prompts": {"background": "a lake"}, "detail": {"strength": 0.2}})
    assert again.layer_prompts == prompts | {"background": "a lake"}
    assert again.detail is not None
    assert (again.detail.scale, again.detail.strength) == (3, 0.2)
    other = request_from(written, {"prompt": "a cup", "layer_prompts": {"background": "a lake"}})
    assert other.layer_prompts == {"background": "a lake"}
    assert "own prompts for foreground were dropped" in other.notes[0]


def test_a_prompt_of_a_layer_that_is_not_drawn_is_left_out_of_an_older_recipe() -> None:
    old = recipe(plan())
    old["request"]["layer_prompts"] = {"foreground": "an apple", "background": "a table"}
    again = request_from(old)
    assert again.layer_prompts == {"foreground": "an apple"}
    assert again.notes == ()
    assert plan_of(again).layer_prompts == {"foreground": "an apple"}


@given(st.sampled_from(list(Task)), st.integers(MAX_SEED - 30, MAX_SEED), st.integers(1, 8))
@settings(deadline=None)
def test_a_picture_can_be_drawn_again_from_its_own_recipe_whatever_its_seed(task: Task, seed: int, count: int) -> None:
    inputs = {Task.LAYERS: {}, Task.TRANSPARENT: {}}.get(task, {"foreground": Path("a"), "background": Path("b")})
    if inputs or seed + count - 1 > MAX_SEED:
        return
    try:
        whole = plan(task=task, seed=seed, count=count)
    except InvalidRequest as error:
        assert "smaller seed" in str(error)  # noqa: PT017 - only some are refused, before anything is drawn
        return
    for one in seeds(whole):
        alone = whole.model_copy(update={"seed": one, "count": 1})
        again = request_from(recipe(alone))
        assert planned_again(again, alone) == alone


STAGE = {"method": "layer_sd15_transparent_attn", "sampler": "Euler a", "schedule": "Automatic", "steps": 150}
STAGE |= {"guidance_scale": 7.0}
BROKEN: dict[str, dict[str, Any]] = {
    "a hundred thousand stages": {"request": {"prompt": "x", "stages": [STAGE] * 100_000}},
    "the same stage twice": {"request": {"prompt": "x", "stages": [STAGE] * LONGEST_ROUTE}},
    "no stages": {"request": {"prompt": "x"}},
    "stages of nothing": {"request": {"prompt": "x", "stages": []}},
    "a stage that is a number": {"request": {"prompt": "x", "stages": [1]}},
    "a stage whose method is a list": {"request": {"prompt": "x", "stages": [{"method": [1]}]}},
    "a request that is a list": {"request": [1]},
    "no request": {},
    "pictures that are numbers": {"request": {"prompt": "x", "stages": [STAGE]}, "pictures": {"image": 3}},
    "a hash that is none": {
        "request": {"prompt": "x", "stages": [STAGE]},
        "pictures": {"image": {"name": "x", "sha256": "x"}},
    },
    "a picture of no layer": {
        "request": {"prompt": "x", "stages": [STAGE], "inputs": {"sky": "x"}},
        "pictures": {"sky": {"name": "x", "sha256": "ab" * 32}},
        "input_sha256": {"x": "ab" * 32},
    },
    "layer prompts that are a number": {"request": {"prompt": "x", "stages": [STAGE], "layer_prompts": 3}},
    "a million names": {"request": {"prompt": "x", "stages": [STAGE], **{"y" * 10_000 + str(n): 1 for n in range(99)}}},
}


@pytest.mark.parametrize("format", [1, 2, 3, "x" * 10_000, None, [1]], ids=lambda value: str(value)[:8])
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_recipe_is_refused_in_few_words(case: str, format: Any) -> None:
    for changes in ({}, {"method": "layer_sd15_transparent_attn", "prompt": "y"}):
        with pytest.raises(LayerDiffuseError) as refused:
            request_from({"format": format, **BROKEN[case]}, changes, found)
        assert 10 < len(str(refused.value)) < 2000


def test_of_a_million_dropped_layer_prompts_little_is_said() -> None:
    prompts = {"y" * 1000 + str(n): "z" for n in range(999)}
    broken = {"format": 2, "request": {"prompt": "x", "stages": [STAGE], "layer_prompts": prompts}}
    assert len(request_from(broken, {"prompt": "y"}, found).notes[0]) < 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from([1, 2]), st.dictionaries(st.sampled_from(list(GenerateRequest.model_fields)), JSON), JSON, JSON)
@settings(max_examples=200, deadline=None)
def test_whatever_a_recipe_holds_it_is_a_request_or_an_error_of_ours(
    format: int, fields: dict[str, Any], pictures: Any, hashes: Any
) -> None:
    request = {"prompt": "x", "stages": [STAGE], **fields}
    try:
        request_from({"format": format, "request": request, "pictures": pictures, "input_sha256": hashes}, None, found)
    except LayerDiffuseError as error:
        assert str(error)  # noqa: PT017 - most are refused
