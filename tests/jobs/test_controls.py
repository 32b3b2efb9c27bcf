"""What is asked of ControlNets before anything waits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.api.plan import DrawPlan, batch_key
from layerdiffuse_mcp.api.requests import GenerateRequest, validated
from layerdiffuse_mcp.api.sets import set_of
from layerdiffuse_mcp.errors import ImageError, InvalidRequest, LayerDiffuseError
from layerdiffuse_mcp.jobs.planner import plan
from layerdiffuse_mcp.recipes.recipe import recipe_of, request_from
from layerdiffuse_mcp.settings import Settings
from tests.narrow import write_control, write_models

BASE = {"prompt": "a house", "model": "tiny-sd15"}
CONTROL = {"model": "SD15_canny", "image": "cut.png"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder, ("sd15",))
    for name in ("sd15", "sdxl"):
        write_control(folder / "controlnet" / f"{name}_canny.safetensors", name)
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
    "of another family": ([{"model": "sdxl_canny"}], {}, InvalidRequest, "is for SDXL models, and tiny-sd15 is"),
    "for the pocket model": ([{}], {"model": "pocket"}, InvalidRequest, "control does not act on pocket"),
    "no picture": ([{"image": "text.png"}], {}, ImageError, "text.png"),
    "an outline of what has none": (
        [{"image": "opaque.png", "preprocess": "alpha_edge"}], {}, InvalidRequest, "opaque.png has no transparency",
    ),
    "a frame that is not drawn": ([{"frames": ["background"]}], {}, InvalidRequest, "and no background"),
    "no step": ([{"start": 0.5, "end": 0.5}], {}, InvalidRequest, "start is not below end"),
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
    other = planned(request_from(recipe, {"control": [CONTROL]}, lambda picture: Path(picture.name)), known)
    assert len(other.control) == 1


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
