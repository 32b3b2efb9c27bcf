"""What our own golden cases cover, and that none of them can be lost unseen."""

import re
from pathlib import Path
from typing import Any

import pytest

from layerdiffuse_mcp.api.choices import EMPHASIS, NOISE_SOURCES, RESIZE_MODES, SAMPLERS, SCHEDULES
from layerdiffuse_mcp.families.registry import FAMILIES, METHODS
from layerdiffuse_mcp.server.tools import TOOLS, drawing

from .conftest import DATA, GoldenSet, keys_to_meet

HERE = Path(__file__).parent
FILES = {
    "cases.json", "denoised.safetensors", "imaging.safetensors", "layer_methods.safetensors",
    "noise_and_sigmas.safetensors", "pictures.safetensors", "prompt_embeddings.safetensors", "prompts.json",
    "samplers.safetensors", "samplers_more.safetensors", "schedules_more.safetensors", "set.json",
    "transparency.safetensors",
}  # fmt: skip

UNCOVERED: dict[str, set[str]] = {
    "samplers from noise": set(),
    "samplers from a latent": {"DPM2", "DPM++ 2M SDE Heun", "Euler"},
    "schedules": set(),
    "samplers with Automatic": {"Euler"},
    "methods": set(),
    "methods in whole runs": set(),
    "tools": set(),
    "noise sources": {"cpu"},
    "resize modes": set(),
    "emphasis": set(),
}
"""What no golden case covers. Beside these choices: masks, LoRAs, clip skip above its default in a whole run,
v-prediction and zero-SNR bases, bases in half precision, pictures to edit of another size than is drawn."""


@pytest.fixture(scope="module")
def ours() -> GoldenSet:
    """Our own copy, whichever set the run is about."""
    return GoldenSet(DATA, {})


def test_every_choice_is_covered_but_for_those_listed(ours: GoldenSet) -> None:
    sampled = [key.split("/") for name in ("samplers", "samplers_more") for key in ours.keys(name)]
    levels = [key.split("/") for name in ("noise_and_sigmas", "schedules_more") for key in ours.keys(name)]
    arguments = [case["arguments"] for case in ours.cases.values()]
    methods = [method.id for method in METHODS.values() if FAMILIES[method.family].drawer == "sampled"]  # as it does
    offered_and_covered: dict[str, tuple[Any, set[str]]] = {
        "samplers from noise": (SAMPLERS, {parts[0] for parts in sampled}),
        "samplers from a latent": (SAMPLERS, {parts[1] for parts in sampled if parts[0] == "img2img"}),
        "schedules": (
            {*SCHEDULES} - {"Automatic"},
            {parts[-2] for parts in levels if parts[0] == "sigmas"},
        ),
        "samplers with Automatic": (
            [name for name, row in SAMPLERS.items() if row.automatic_schedule],
            {parts[1] for parts in levels if parts[0] == "sampler" and parts[2] == "Automatic"}
            | {given["sampler"] for given in arguments if given.get("schedule") == "Automatic"},
        ),
        "methods": (methods, {key.split("/")[0] for key in ours.keys("layer_methods")}),
        "methods in whole runs": (methods, {method for case in ours.cases.values() for method in case["methods"]}),
        "tools": (
            [row.name for row in TOOLS if row.function.__module__ == drawing.__name__],
            {case["tool"] for case in ours.cases.values()},
        ),
        "noise sources": (NOISE_SOURCES, {"nvidia"}),
        "resize modes": (RESIZE_MODES, {"Crop and Resize"} | {given.get("resize_mode") for given in arguments}),
        "emphasis": (EMPHASIS, {key.split("/")[1] for key in ours.keys("prompt_embeddings")}),
    }
    assert {name: {*offered} - covered for name, (offered, covered) in offered_and_covered.items()} == UNCOVERED


def test_every_file_is_there_and_answered_for_by_a_test(ours: GoldenSet) -> None:
    assert {path.name for path in DATA.iterdir()} == FILES
    tests = "".join(path.read_text() for path in HERE.glob("test_*.py") if path != Path(__file__))
    for name in {Path(file).stem for file in FILES} - {"set", "cases", "prompts", "pictures"}:
        assert f'golden_file("{name}"' in tests, name
    assert "golden.prompts" in tests
    assert "case: dict" in tests
    expected = {key for case in ours.cases.values() for key in case["expect"]}
    stored = {key.removesuffix("/latent") for key in ours.keys("pictures") if not key.startswith("picture.")}
    assert stored == {key.removesuffix("/latent") for key in expected}


def test_keys_of_a_file_are_met_by_some_test_or_other(ours: GoldenSet) -> None:
    asked: dict[str, set[str]] = {}
    for path in HERE.glob("test_*.py"):
        for name, arguments in re.findall(r'golden_file\("(\w+)"(?:, (\w+="\w+"))?\)', path.read_text()):
            options = dict([arguments.replace('"', "").split("=")]) if arguments else {}
            asked.setdefault(name, set()).update(keys_to_meet(ours, name, **options))
    for name, met in asked.items():
        left = {key.split("/")[0] for key in set(ours.keys(name)) - met}
        assert left <= {"others", "rgba"}, name


def test_a_missing_file_and_an_empty_one_are_no_success(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    (tmp_path / "set.json").write_text((DATA / "set.json").read_text())
    without = GoldenSet(tmp_path, {})
    with pytest.raises(FileNotFoundError):
        without.keys("samplers")
    with pytest.raises(FileNotFoundError):
        _ = without.cases
    assert pytestconfig.getini("empty_parameter_set_mark") == "fail_at_collect"
