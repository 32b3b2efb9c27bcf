"""A request that cannot be is refused in words that an agent can act on."""

import pickle
import re

import pytest

from layerdiffuse_mcp.api.requests import DecodeRequest, GenerateRequest, Stage, any_request, validated
from layerdiffuse_mcp.errors import InvalidRequest

WRONG = {
    "empty prompt": ({"prompt": "  "}, "prompt is empty"),
    "width 7": ({"width": 7}, "width .*16.*got 7"),
    "width too large": ({"width": 60_000}, "width .*2048"),
    "no steps": ({"steps": 0}, "steps .*1"),
    "too many steps": ({"steps": 10_000}, "steps .*150"),
    "not a number": ({"guidance_scale": float("nan")}, "guidance_scale"),
    "unknown sampler": ({"sampler": "DPM2M"}, "Did you mean DPM"),
    "unknown schedule": ({"schedule": "Karas"}, "Did you mean Karras"),
    "unknown parameter": ({"stepz": 3}, "stepz"),
    "negative seed": ({"seed": -2}, "seed"),
    "last seed passed": ({"seed": 2**32 - 1, "count": 2}, "smaller seed"),
    "too many": ({"count": 9}, "count .*8"),
    "mask alone": ({"mask": "m.png"}, "mask is given without image"),
    "edit of a layer set": ({"image": "i.png", "task": "layers"}, "edit_transparent"),
    "method of another task": ({"method": "layer_xl_fg2ble"}, "cannot do the task transparent"),
    "long prompt": ({"prompt": "x" * 20_001}, "20000"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_parameter_is_named_with_what_is_allowed(case) -> None:
    fields, hint = WRONG[case]
    with pytest.raises(InvalidRequest, match=hint):
        validated(GenerateRequest, {"prompt": "an apple"} | fields)


def test_many_alike_mistakes_are_said_once() -> None:
    with pytest.raises(InvalidRequest) as raised:
        validated(GenerateRequest, {"prompt": "x", "control": ["a", 3, "b", {"model": "c"}]})
    said = 'control.0 must be an object, as in {"model": ..., "image": ...} (got \'a\'); the same is wrong in 1 more.'
    assert said in str(raised.value)
    assert "control.3.image is missing" in str(raised.value)


def test_a_request_survives_the_way_to_another_process() -> None:
    request = GenerateRequest(prompt="an apple", inputs={"foreground": "a.png"}, seed=3)
    assert pickle.loads(pickle.dumps(request)) == request


def test_a_request_is_known_by_its_kind() -> None:
    assert isinstance(any_request({"kind": "decode", "latent": "x.safetensors"}), DecodeRequest)
    with pytest.raises(InvalidRequest):
        any_request({"kind": "paint"})


def test_enums_in_the_schema_come_from_the_tables() -> None:
    schema = Stage.model_json_schema()["properties"]
    assert "DPM++ 2M SDE" in schema["sampler"]["enum"]
    assert "layer_xl_fgble2bg" in schema["method"]["enum"]


def test_what_is_wrong_with_several_fields_is_said_in_whole_sentences():
    with pytest.raises(InvalidRequest) as raised:
        validated(GenerateRequest, {"prompt": "x", "speed": "fast", "steps": 0, "guidance_scale": 99})
    assert re.search(r"Allowed: [\w, ]+\. steps must be .*; guidance_scale must be [^;]*\.$", str(raised.value))
