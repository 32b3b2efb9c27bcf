"""A size far from a model's own is drawn near that and fitted, refused, or drawn as it is where that is asked for."""

from pathlib import Path

import pytest
from PIL import Image

from layerdiffuse_mcp.api.fields import MIN_DRAWN
from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.api.requests import GenerateRequest, validated
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.jobs.planner import plan
from layerdiffuse_mcp.recipes.recipe import recipe_of, request_from
from layerdiffuse_mcp.settings import Settings
from tests.tasks import plan_of


def planned(settings: Settings, **fields) -> DrawPlan:
    """The plan of a drawing by the pocket model, whose own size is 128x128, on a processor."""
    request = GenerateRequest(**({"prompt": "a red apple", "model": "pocket", "seed": 1} | fields))
    [task] = plan(request, settings.model_copy(update={"device": "cpu"})).tasks
    assert isinstance(task, DrawPlan)
    return task


@pytest.mark.parametrize("size", [(128, 128), (96, 88), (192, 128), (77, 131)])
def test_a_size_near_the_models_own_is_drawn_as_it_is(settings: Settings, size: tuple[int, int]):
    made = planned(settings, width=size[0], height=size[1])
    assert (made.width, made.height, made.drawn, made.fit, made.notes) == (*size, None, "as_is", ())


@pytest.mark.parametrize(("size", "drawn", "words"), [
    ((256, 256), (128, 128), "256x256 has 4 times the area that pocket draws best (128x128): it was drawn as 128x128"),
    ((64, 64), (128, 128), "0.25 times"),
    ((200, 130), (160, 104), "enlarged"),
    ((32, 32), (128, 128), "0.0625 times"),
    ((16, 48), (72, 224), "made smaller"), ((16, 2048), (64, 1448), "drawn as 64x1448 and made smaller"),
    ((48, 200), (64, 264), "0.586 times the area that pocket draws best (128x128): it was drawn as 64x264"),
])  # fmt: skip
def test_another_size_is_drawn_near_the_models_own_and_the_numbers_are_said(
    settings: Settings, size: tuple[int, int], drawn: tuple[int, int], words: str
):
    made = planned(settings, width=size[0], height=size[1])
    assert (made.width, made.height, made.drawn, made.fit) == (*size, drawn, "contain")
    assert words in made.notes[0]
    assert ("as_is" in made.notes[0]) == (min(size) >= MIN_DRAWN)
    assert made.as_drawn.width * made.as_drawn.height == drawn[0] * drawn[1]


def test_what_is_smaller_than_any_model_draws_cannot_be_drawn_as_it_is(settings: Settings):
    with pytest.raises(InvalidRequest, match=r"48x200 cannot be drawn as it is.*Leave options.fit out"):
        planned(settings, width=48, height=200, fit="as_is")


@pytest.mark.parametrize(("size", "resize_mode", "said"), [
    (None, "Crop and Resize", None),
    ((128, 120), "Crop and Resize", None),
    ((256, 128), "Crop and Resize", "only the middle 100x48 of the foreground picture's 100x100, for it draws 184x88"),
    ((80, 160), "Crop and Resize", "only the middle 50x100"),
    ((256, 128), "Resize and Fill", None),
    ((256, 128), "Just Resize", None),
])  # fmt: skip
def test_a_given_picture_that_the_model_does_not_see_whole_is_said_to_be_cropped(
    settings: Settings, tmp_path: Path, size: tuple[int, int] | None, resize_mode: str, said: str | None
):
    Image.new("RGBA", (100, 100), (200, 30, 30, 128)).save(tmp_path / "cup.png")
    sides = {"width": size[0], "height": size[1]} if size else {}
    given = {"task": Task.BACKGROUND_FROM_FOREGROUND, "inputs": {"foreground": tmp_path / "cup.png"}}
    notes = " ".join(planned(settings, **given, **sides, resize_mode=resize_mode).notes)
    assert ("saw only the middle" in notes) == (said is not None)
    assert (said or "") in notes
    assert ("Leave size out" in notes) == (said is not None)


def test_a_mask_of_another_shape_is_said_to_be_cropped_where_no_size_was_given(settings: Settings, tmp_path: Path):
    for name, size in {"cup": (96, 96), "mask": (96, 48)}.items():
        Image.new("RGBA", size, (255, 255, 255, 128)).save(tmp_path / f"{name}.png")
    notes = " ".join(planned(settings, image=tmp_path / "cup.png", mask=tmp_path / "mask.png").notes)
    assert "middle 48x48 of the mask picture's 96x48" in notes
    assert "Give one of that shape" in notes


def test_opaque_layers_fill_their_pictures(settings: Settings):
    assert planned(settings, task=Task.LAYERS, width=256, height=256).fit == "cover"
    assert planned(settings, task=Task.LAYERS, width=256, height=256, fit="contain").fit == "contain"


def test_far_more_than_the_models_own_size_has_to_be_asked_for_on_a_processor(settings: Settings):
    with pytest.raises(InvalidRequest, match=r"1200x630 has 46.1 times .* options.fit: 'as_is' draws 1200x630"):
        planned(settings, width=1200, height=630)
    with pytest.raises(InvalidRequest, match=r"'cover' draws 176x96 and enlarges it"):
        planned(settings, task=Task.LAYERS, width=1200, height=630)
    whole = planned(settings, width=1200, height=630, fit="as_is")
    assert (whole.drawn, whole.fit) == (None, "as_is")
    assert "repeat" in whole.notes[0]
    assert planned(settings, width=1200, height=630, fit="contain").drawn == (176, 96)
    card = settings.model_copy(update={"device": "cuda"})
    [task] = plan(GenerateRequest(prompt="a red apple", model="pocket", width=1200, height=630), card).tasks
    assert isinstance(task, DrawPlan)
    assert task.drawn == (176, 96)


@pytest.mark.parametrize("fit", ["crop", "", "AS_WAS", 3])
def test_a_fit_that_there_is_not_is_refused(fit: object):
    with pytest.raises(InvalidRequest, match="fit"):
        validated(GenerateRequest, {"prompt": "x", "fit": fit})


def of(made: DrawPlan) -> dict[str, object]:
    return recipe_of(made, weights={}, device="cpu", dtype="float32")


def test_a_recipe_draws_the_same_size_whatever_a_later_version_would_decide():
    made = plan_of(GenerateRequest(prompt="x", seed=1, width=1100, height=1000))
    again = plan_of(request_from(of(made)), native_size=768)
    assert (again.width, again.height, again.drawn, again.fit) == (1100, 1000, made.drawn, "contain")
    assert made.drawn == (536, 488)


def test_a_recipe_that_says_nothing_of_a_fit_is_drawn_as_it_was():
    recipe = of(plan_of(GenerateRequest(prompt="x", seed=1, width=1100, height=1000, fit="as_is")))
    for name in ("fit", "drawn"):
        del recipe["request"][name]  # type: ignore[attr-defined]
    again = plan_of(request_from(recipe))
    assert (again.width, again.height, again.drawn) == (1100, 1000, None)


def test_a_new_size_or_model_is_decided_anew():
    recipe = of(plan_of(GenerateRequest(prompt="x", seed=1, width=1100, height=1000)))
    smaller = plan_of(request_from(recipe, {"width": 512, "height": 512}))
    assert (smaller.drawn, smaller.fit) == (None, "as_is")
    assert plan_of(request_from(recipe, {"model": "other"}), native_size=1024).drawn is None
    assert plan_of(request_from(recipe, {"fit": "as_is"})).drawn is None


@pytest.mark.parametrize(("name", "mode", "colour", "refused"), [
    ("alpha.png", "RGBA", (1, 2, 3, 254), False), ("grey.png", "LA", (9, 100), False),
    ("solid.png", "RGBA", (1, 2, 3, 255), True), ("rgb.png", "RGB", (1, 2, 3), True), ("l.webp", "L", 9, True),
    ("photo.jpg", "RGB", (1, 2, 3), True), ("palette.png", "P", 0, True),
])  # fmt: skip
def test_only_a_picture_with_transparency_is_edited(
    settings: Settings, tmp_path: Path, name: str, mode: str, colour: object, refused: bool
):
    Image.new(mode, (64, 64), colour).save(tmp_path / name)  # type: ignore[arg-type]
    if refused:
        with pytest.raises(InvalidRequest, match=rf"{name} has no transparency.*cut_out"):
            planned(settings, image=tmp_path / name)
    else:
        assert planned(settings, image=tmp_path / name).image is not None


@pytest.mark.parametrize("transparency", [0, b"\0\xff\xff"])
def test_a_transparent_colour_of_a_palette_counts(settings: Settings, tmp_path: Path, transparency: int | bytes):
    Image.new("P", (64, 64)).save(tmp_path / "sprite.png", transparency=transparency)
    assert planned(settings, image=tmp_path / "sprite.png").image is not None


def test_an_opaque_foreground_is_said_to_hide_what_is_behind_it(settings: Settings, tmp_path: Path):
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    made = planned(settings, task=Task.BACKGROUND_FROM_FOREGROUND, inputs={"foreground": tmp_path / "photo.png"})
    assert any("call cut_out first" in note for note in made.notes)


@pytest.mark.parametrize(("fields", "doubted"), [
    ({"prompt": "a harp"}, True), ({"prompt": "purse"}, True), ({"prompt": "ein roter Apfel"}, True),
    ({"prompt": "a red apple"}, False), ({"prompt": "a sunny meadow"}, True),
    ({"prompt": "a sunny meadow", "task": Task.LAYERS}, False),
    ({"prompt": "an apple", "task": Task.LAYERS, "layer_prompts": {"background": "a dusty attic"}}, True),
])  # fmt: skip
def test_a_prompt_that_the_pocket_model_knows_nothing_of_is_said(
    settings: Settings, fields: dict[str, object], doubted: bool
):
    assert any("knows no subject" in note for note in planned(settings, **fields).notes) is doubted


NOT_LEARNT = "a harp; purse; ein roter Apfel; a xylophone; a wizard casting spells; Excalibur; 剣; a stapler; qwe; épée"
LEARNT = "a red apple; apples; an orange; a glass of water; a cat; chair; a fish; a cup; two cats; a (red:1.2) apple"


@pytest.mark.parametrize(
    ("prompt", "unknown"),
    [*((word, True) for word in NOT_LEARNT.split("; ")), *((word, False) for word in LEARNT.split("; "))],
)
def test_a_cut_out_is_doubtful_whose_subject_the_base_has_not_learnt(settings: Settings, prompt: str, unknown: bool):
    assert planned(settings, prompt=prompt).unknown_subject is unknown


def test_of_layers_the_foregrounds_own_prompt_counts(settings: Settings):
    own = {"task": Task.LAYERS, "layer_prompts": {"foreground": "a harp"}}
    assert planned(settings, prompt="a red apple", **own).unknown_subject
    assert not planned(settings, prompt="a harp", **own | {"layer_prompts": {"foreground": "an apple"}}).unknown_subject
