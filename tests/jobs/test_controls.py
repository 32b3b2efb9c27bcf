"""What is asked of ControlNets before anything waits."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.api.given import GivenPicture, PlannedControl
from layerdiffuse_mcp.api.plan import DrawPlan, batch_key
from layerdiffuse_mcp.api.requests import GenerateRequest, validated
from layerdiffuse_mcp.api.sets import set_of
from layerdiffuse_mcp.errors import ImageError, InvalidRequest, LayerDiffuseError
from layerdiffuse_mcp.jobs.planner import plan
from layerdiffuse_mcp.recipes.recipe import recipe_of, request_from
from layerdiffuse_mcp.settings import Settings
from tests.narrow import write_control, write_ip_adapter, write_models, write_vision

BASE = {"prompt": "a house", "model": "tiny-sd15"}
CONTROL = {"model": "SD15_canny", "image": "cut.png"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder, ("sd15",))
    for name in ("sd15", "sdxl"):
        write_control(folder / "controlnet" / f"{name}_canny.safetensors", name)
        write_ip_adapter(folder / "ip-adapter" / f"{name}-plain.safetensors", name)
    write_ip_adapter(folder / "ip-adapter" / "wide.safetensors", "sd15", width=31)
    write_vision(folder / "ip-adapter" / "image_encoder")
    return folder


@pytest.fixture
def known(settings: Settings, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with these models; two pictures and a text lie in the working folder."""
    monkeypatch.chdir(tmp_path)
    cut = np.zeros((40, 80, 4), np.uint8)
    cut[10:30, 10:30] = 255
    Image.fromarray(cut).save("cut.png")
    Image.fromarray(cut[..., :3]).save("opaque.png")
    Path("text.png").write_text("no picture")
    return settings.model_copy(update={"models_dir": models})


def request(*controls: dict[str, Any], **fields: Any) -> GenerateRequest:
    return validated(GenerateRequest, {**BASE, "control": [CONTROL | one for one in controls], **fields})


def planned(request: GenerateRequest, settings: Settings) -> DrawPlan:
    [task] = plan(request, settings).tasks
    assert isinstance(task, DrawPlan)
    return task


REFUSED: dict[str, tuple[list[dict[str, Any]], dict[str, Any], type[LayerDiffuseError], str]] = {
    "an unknown one": ([{"model": "cany"}], {}, LayerDiffuseError, "There is no ControlNet 'cany'"),
    "a part of names": ([{"model": "sd15"}], {}, LayerDiffuseError, "models. Did you mean sd15_canny? Allowed: sd15_"),
    "of another family": (
        [{"model": "sdxl_canny"}], {}, LayerDiffuseError, "and SD 1.5 models need another. Did you mean sd15_canny?",
    ),
    "for the pocket model": ([{}], {"model": "pocket"}, InvalidRequest, "control would not act on pocket"),
    "no picture": ([{"image": "text.png"}], {}, ImageError, "text.png"),
    "an outline of what has none": (
        [{"image": "opaque.png", "preprocess": "alpha_edge"}], {}, InvalidRequest, "opaque.png has no transparency",
    ),
    "a frame that is not drawn": ([{"frames": ["background"]}], {}, InvalidRequest, "and no background"),
    "no step": ([{"start": 0.5, "end": 0.5}], {}, InvalidRequest, "start is not below end"),
    "none of few steps": (
        [{}, {"start": 0.1, "end": 0.2}], {"steps": 2}, InvalidRequest, "control.1 would act in none of the 2 steps",
    ),
    "none of the steps that edit": (
        [{"end": 0.5}], {"image": "cut.png", "strength": 0.1, "steps": 4}, InvalidRequest, "in none of the 1 step:",
    ),
    "no strength": ([{"strength": 0}], {}, InvalidRequest, "strength must be more than 0"),
    "an unknown preprocessing": ([{"preprocess": "depth"}], {}, InvalidRequest, "unknown preprocessing 'depth'"),
    "an unknown field": ([{"weight": 1}], {}, InvalidRequest, "a control has no 'weight'"),
    "too many": ([{}] * 5, {}, InvalidRequest, "control may have at most 4 items"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_act_is_refused_at_once(name: str, known: Settings):
    controls, fields, error, says = REFUSED[name]
    with pytest.raises(error) as raised:
        planned(request(*controls, **fields), known)
    assert says in str(raised.value)


def test_a_plan_names_it_as_the_catalogue_does_and_its_picture_by_content(known: Settings):
    task = planned(request({"strength": 0.5}), known)
    [control] = task.control
    assert (control.model, control.strength, control.image.name) == ("sd15_canny", 0.5, "cut.png")
    assert task.pictures["control_1"] == control.image
    assert batch_key(task) != batch_key(planned(request({"strength": 0.6}), known))


def test_a_recipe_names_the_picture_and_makes_the_same_plan_again(known: Settings):
    task = planned(request({}, {"image": "opaque.png", "preprocess": "canny", "end": 0.5}, seed=3), known)
    recipe = recipe_of(task, weights={}, device="cpu", dtype="float32")
    assert [picture["name"] for picture in recipe["pictures"].values()] == ["cut.png", "opaque.png"]
    assert all("image" not in control for control in recipe["request"]["control"])
    again = planned(request_from(recipe, find=lambda picture: Path(picture.name)), known)
    assert again.control == task.control


def found(picture: GivenPicture) -> Path:
    return Path(picture.name)


def lost(picture: GivenPicture) -> Path:
    raise ImageError(f"{picture.name} is gone.")


def test_a_part_of_a_control_is_changed_and_the_rest_stays(known: Settings):
    how = {"preprocess": "canny", "start": 0.1, "end": 0.5, "frames": ["foreground"]}
    task = planned(request({}, {"image": "opaque.png", **how}, seed=3), known)
    recipe = recipe_of(task, weights={}, device="cpu", dtype="float32")
    first, second = task.control
    changes: list[tuple[list[dict[str, Any]], list[PlannedControl]]] = [
        ([{}, {"strength": 0.3}], [first, second.model_copy(update={"strength": 0.3})]),
        ([{"model": "SD15_CANNY", "end": 0.4}, {}], [first.model_copy(update={"end": 0.4}), second]),
        ([{}, {"image": "cut.png"}], [first, second.model_copy(update={"image": first.image})]),
        ([{}, {}, CONTROL], [first, second, first]),
        ([], []),
    ]
    for change, expected in changes:
        again = request_from(recipe, {"control": change}, found)
        assert [*planned(again, known).control] == expected
        assert again.notes == ()
    fewer = request_from(recipe, {"control": [{}]}, found)
    assert [*planned(fewer, known).control] == [first]
    assert "Of the recipe, control.1 was dropped" in fewer.notes[0]


def test_another_control_starts_anew_and_what_is_no_control_is_refused(known: Settings):
    recipe = recipe_of(planned(request({}, seed=3), known), weights={}, device="cpu", dtype="float32")
    wrong: dict[str, Any] = {
        r"control\.0\.image is missing": [{"model": "other"}],
        r"control\.1\.model is missing": [{}, {"strength": 1}],
        "start is not below end": [{"start": 0.9, "end": 0.2}],
        r"control\.0\.image is missing\.$": {"model": "third"},
        r"control\.0 must be an object": ["sd15_canny"],
    }
    for says, change in wrong.items():
        with pytest.raises(InvalidRequest, match=says):
            request_from(recipe, {"control": change}, found)


def test_a_picture_that_is_gone_is_replaced_by_a_change(known: Settings):
    refer = REFERENCE | {"mask": "cut.png"}
    recipe = recipe_of(planned(request({}, {}, reference=refer, seed=3), known), weights={}, device="", dtype="")
    control: list[dict[str, Any]] = []
    reference: dict[str, str] = {}
    places = [
        ('changes.options.control: [{"image": "new.png"}]', lambda: control.append({"image": "cut.png"})),
        ('changes.options.control: [{}, {"image": "new.png"}]', lambda: control.append({"image": "cut.png"})),
        ('changes.options.reference: {"image": "new.png"}', lambda: reference.update(image="cut.png")),
        ('changes.options.reference: {"mask": "new.png"}', lambda: reference.update(mask="cut.png")),
    ]
    for says, repair in places:
        kept = [*control, *[{}] * (2 - len(control))]
        with pytest.raises(ImageError, match=re.escape(f"cut.png is gone. Or give another as {says}.")):
            request_from(recipe, {"control": kept, "reference": reference}, lost)
        repair()
    assert request_from(recipe, {"control": control, "reference": reference}, lost).reference


def test_a_damaged_recipe_is_refused_in_words(known: Settings):
    recipe = recipe_of(planned(request({}, seed=3), known), weights={}, device="cpu", dtype="float32")
    for control in ("canny", [1], [{"model": "sd15_canny"}, {}]):
        broken = {**recipe, "request": {**recipe["request"], "control": control}}
        with pytest.raises(InvalidRequest, match="control"):
            request_from(broken, find=lambda picture: Path(picture.name))


def test_the_pictures_of_a_set_follow_one_and_have_one_size(known: Settings):
    fields = {"model": "tiny-sd15", "control": [CONTROL]}
    made = plan(set_of(["a cup", "a hat"], seed=1, fields=fields), known)
    assert len(made.inputs) == 1
    assert {task.result for task in made.tasks if isinstance(task, DrawPlan)} == {(64, 64)}


def test_a_control_acts_in_one_run_of_several_at_least(known: Settings):
    some = {"start": 0.1, "end": 0.2, "frames": ["foreground"]}
    detail = {"scale": 2, "strength": 1}
    with pytest.raises(InvalidRequest, match=r"control\.0 would act in none of the 4 steps"):
        planned(request(some, steps=4, detail=detail), known)
    assert planned(request({"end": 0.5}, image="cut.png", strength=0.1, steps=4, detail=detail), known).control


def test_a_picture_that_is_no_map_of_lines_is_doubted_for_a_network_of_lines(known: Settings):
    lines = np.zeros((40, 80, 3), np.uint8)
    Image.fromarray(np.full_like(lines, (200, 60, 40))).save("photo.png")
    lines[::10] = 255
    Image.fromarray(lines).save("lines.png")
    controls = [{"image": "lines.png"}, {"image": "photo.png"}, {"image": "photo.png", "preprocess": "canny"}]
    [doubt] = [note for note in planned(request(*controls), known).notes if "lines on black" in note]
    assert doubt.startswith("photo.png is no map")
    assert "set preprocess of control.1 to canny" in doubt


def test_poses_and_a_picture_for_all_are_not_given_together():
    fields = {"control": [CONTROL], "poses": ["cut.png"]}
    with pytest.raises(InvalidRequest, match=r"poses would take the place of the image of options\.control\.0"):
        set_of(["a cup"], fields=fields)


REFERENCE = {"model": "sd15-plain", "image": "cut.png"}
UNFIT = {
    "an unknown one": ({"model": "sd15-plan"}, "Did you mean sd15-plain"),
    "of another family": ({"model": "sdxl-plain"}, "is for SDXL models, and SD 1.5 models need another"),
    "without its encoder": ({"model": "wide"}, "goes with an image encoder whose projection_dim is 31, and none is"),
    "no picture": ({"image": "text.png"}, "text.png"),
    "no strength": ({"strength": 0}, "reference.strength must be more than 0"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_reference_that_cannot_act_is_refused_at_once(name: str, known: Settings):
    changed, says = UNFIT[name]
    with pytest.raises(LayerDiffuseError) as raised:
        planned(request(reference=REFERENCE | changed), known)
    assert says in str(raised.value)


def test_a_reference_is_in_the_plan_and_in_the_recipe_and_gives_no_shape(known: Settings):
    task = planned(request(reference=REFERENCE | {"mask": "opaque.png"}, seed=3), known)
    assert task.result == (64, 64)
    assert {*task.pictures} == {"reference", "reference_mask"}
    recipe = recipe_of(task, weights={}, device="cpu", dtype="float32")
    assert recipe["request"]["reference"] == {"model": "sd15-plain", "strength": 0.6}
    again = planned(request_from(recipe, find=lambda picture: Path(picture.name)), known)
    assert again.reference == task.reference
    part = request_from(recipe, {"reference": {"strength": 0.3}}, lambda picture: Path(picture.name))
    assert planned(part, known).reference == task.reference.model_copy(update={"strength": 0.3})
