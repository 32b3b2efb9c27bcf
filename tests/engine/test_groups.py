"""Requests drawn as one batch: each gets what it would have got alone."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.api.outcome import Outcome, Progress, Timings
from layerdiffuse_mcp.api.plan import GroupPlan
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.errors import LayerDiffuseError
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.recipes.recipe import read_recipe
from tests.tasks import drawing

LONG = "a cup, " * 50
COMMON = {
    "frames with prompts of their own": {
        "model": "tiny-sd15",
        "task": Task.LAYERS,
        "layer_prompts": {"background": "a table"},
    },
    "control picture": {"model": "tiny-sd15", "task": Task.BACKGROUND_FROM_FOREGROUND, "inputs": "foreground"},
    "noise at each step": {"model": "tiny-sd15", "sampler": "DPM++ SDE"},
    "joined picture": {"model": "tiny-sdxl", "task": Task.BACKGROUND_FROM_FOREGROUND, "inputs": "foreground"},
}
OWN = [
    {"prompt": "a red apple", "seed": 5},
    {"prompt": "a blue cup", "negative_prompt": "ugly", "seed": 40, "count": 2},
    {"prompt": LONG, "seed": 5, "save_latent": True},
]


def quiet(_: Progress) -> None:
    return None


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


def facts(outcome: Outcome) -> list[tuple]:
    return [(image.role, image.seed, image.width, image.height) for image in outcome.images]


@pytest.mark.parametrize("case", COMMON)
def test_each_request_of_a_group_gets_the_pictures_it_would_get_alone(engine, folder, case) -> None:
    common = {"steps": 2, **COMMON[case]}
    if role := common.pop("inputs", None):
        common["inputs"] = {role: folder / "given.png"}
    requests = tuple(GenerateRequest(**common, **own) for own in OWN)
    together = engine.run(requests, quiet)
    parts, took = together.parts, together.timings
    assert 0 < took.denoise < took.draw < took.total
    assert {part.timings for part in parts} == {Timings()}  # what is added up counts them once
    for request, part in zip(requests, parts, strict=True):
        alone = engine.run(request, quiet)
        assert facts(part) == facts(alone)
        assert len(part.latents) == len(alone.latents)
        assert (part.recipe, part.warnings) == (alone.recipe, alone.warnings)
        for ours, theirs in zip(part.images, alone.images, strict=True):
            assert np.abs(pixels(ours.path) - pixels(theirs.path)).max() <= 1
            assert read_recipe(ours.path) == read_recipe(theirs.path)


def test_requests_that_are_not_alike_are_no_group() -> None:
    with pytest.raises(ValueError, match=r"differ only in .*count, .*negative_prompt, notes, prompt"):
        GroupPlan(plans=(drawing("a"), drawing("b", steps=3)))


def test_a_request_that_cannot_be_drawn_fails_its_group_before_anything_is_written(engine, folder) -> None:
    before = set((folder / "out").rglob("*"))
    alike = {"model": "tiny-sd15", "steps": 1}
    requests = (GenerateRequest(prompt="a cup", **alike), GenerateRequest(prompt="cup " * 4097, **alike))
    with pytest.raises(LayerDiffuseError, match="tokens"):
        engine.run(requests, quiet)
    assert set((folder / "out").rglob("*")) == before
