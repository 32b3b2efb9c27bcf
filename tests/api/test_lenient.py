"""What was given is taken as it was meant, where that can only be one thing."""

from pathlib import Path
from typing import Any

import pytest

from layerdiffuse_mcp.api import cells, choices, control, fields, layers
from layerdiffuse_mcp.api.cells import Cell
from layerdiffuse_mcp.api.fields import OneOf
from layerdiffuse_mcp.api.layers import Canvas, LayerOptions, PlacedLayer, Shadow
from layerdiffuse_mcp.api.requests import GenerateRequest, validated
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.families.matting import MATTING
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.wording import spelled

MEANT: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one for a list": ({"want": "blended"}, {"want": ["blended"]}),
    "an object for a list of one": (
        {"control": {"model": "a", "image": "a.png"}},
        {"control": [{"model": "a", "image": "a.png"}]},
    ),
    "a role for a list within": (
        {"control": [{"model": "a", "image": "a.png", "frames": "Blended"}]},
        {"control": [{"model": "a", "image": "a.png", "frames": ["blended"]}]},
    ),
    "an enum in other case": ({"task": "TRANSPARENT"}, {"task": "transparent"}),
    "a format in upper case": ({"format": "PNG"}, {"format": "png"}),
    "a sampler in lower case": ({"sampler": "euler a"}, {"sampler": "Euler a"}),
    "a sampler of ComfyUI": ({"sampler": "dpmpp_2m_sde"}, {"sampler": "DPM++ 2M SDE"}),
    "a sampler and its schedule": ({"sampler": "DPM++ 2M Karras"}, {"sampler": "DPM++ 2M", "schedule": "Karras"}),
    "both, and the schedule again": (
        {"sampler": "DPM++ 2M Karras", "schedule": "karras"},
        {"sampler": "DPM++ 2M", "schedule": "Karras"},
    ),
    "separators": ({"schedule": "sgm_uniform", "resize_mode": "just-resize", "fit": "As is"},
                   {"schedule": "SGM Uniform", "resize_mode": "Just Resize", "fit": "as_is"}),
}  # fmt: skip


@pytest.mark.parametrize("case", MEANT)
def test_what_is_meant_is_taken(case: str):
    given, meant = MEANT[case]
    as_given, as_it_should_be = (validated(GenerateRequest, {"prompt": "x", **said}) for said in (given, meant))
    assert as_given == as_it_should_be


def test_a_word_for_an_object_is_its_one_natural_field():
    assert PlacedLayer.model_validate("lamp.png") == PlacedLayer(image="lamp.png")
    assert Canvas.model_validate("1920x1080").pixels == (1920, 1080)
    assert Cell.model_validate("64x64") == Cell(size="64x64")
    assert LayerOptions.model_validate({"shadow": True}).shadow == Shadow()
    assert LayerOptions.model_validate({"shadow": False}).shadow is None
    assert LayerOptions.model_validate({"anchor": "Bottom Right", "blend": "softlight"}).blend == "soft-light"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"reference": "cat.png"},
            r'reference must be an object, as in {"model": ..., "image": ...} \(got \'cat.png\'',
        ),
        ({"control": True}, "control must be a list"),
        ({"want": 3}, r"want\.0 must be 'foreground', 'background' or 'blended' \(got 3\)"),
        ({"sampler": "DPM++ 2M Karras", "schedule": "Beta"}, "is DPM\\+\\+ 2M with the schedule Karras, and schedule"),
        ({"sampler": "Karras"}, "unknown sampler 'Karras'"),
    ],
)
def test_what_cannot_be_told_is_refused_by_its_true_form(given: dict[str, Any], says: str):
    with pytest.raises(InvalidRequest, match=says):
        validated(GenerateRequest, {"prompt": "x", **given})


def test_paths_and_tuples_are_left_as_they_are():
    request = GenerateRequest(prompt="x", want=("blended",), image=None, inputs={"foreground": Path("a.png")})
    assert request.want == ("blended",)
    assert GenerateRequest.model_validate(request) is request


def test_no_two_names_of_a_table_are_spelled_alike():
    tables = [choices.SAMPLERS, choices.SCHEDULES, METHODS, MATTING, layers.ANCHORS, layers.BLENDS, layers.COMPOSED]
    tables += [choices.RESIZE_MODES, choices.FITS, choices.SPEEDS, choices.PREPROCESS, cells.FITS, fields.METADATA]
    for names in tables:
        assert len({spelled(name) for name in names}) == len(names)
        assert [OneOf(tuple(names), "name").check(name.upper()) for name in names] == [*names]
    assert control.ControlUse.model_validate({"preprocess": "Alpha Edge"}).preprocess == "alpha_edge"
