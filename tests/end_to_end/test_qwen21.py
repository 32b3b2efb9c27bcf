"""Pictures by Qwen-Image-2.1, through a client: a base of the real classes, as diffusers saves it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcp import Client
from PIL import Image

from layerdiffuse_mcp.families.qwen21 import LICENCE
from layerdiffuse_mcp.recipes.recipe import read_recipe
from tests.end_to_end.cancelling import cancelled_midway
from tests.qwen21_base import write
from tests.results import facts_of, text_of

pytestmark = [pytest.mark.anyio, pytest.mark.own_server]

WAIT = {"wait_seconds": 600}
OPTIONS: dict[str, Any] = {"model": "small", "steps": 2, "fit": "as_is"}
APPLE: dict[str, Any] = {"prompt": "an apple", "size": "64x64", "seed": 7, "options": OPTIONS, "output": WAIT}


@pytest.fixture(scope="module")
def photo(folder: Path) -> str:
    """An opaque picture, twice as wide as high."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return str(folder / "photo.png")


@pytest.fixture(scope="module")
async def drawn(client: Client, folder: Path) -> Any:
    write(folder / "models" / "small")
    return await client.call_tool("generate_transparent", APPLE)


@pytest.fixture(scope="module")
async def extracted(client: Client, drawn: Any, photo: str) -> Any:
    wanted = {**APPLE, "image": photo, "prompt": "Extract the apple", "size": "128x64"}
    return await client.call_tool("edit_transparent", wanted)


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


async def test_a_call_draws_a_picture_with_alpha_and_says_its_licence(drawn: Any):
    [image] = facts_of(drawn)["images"]
    assert pixels(image["path"]).shape == (64, 64, 4)
    assert image["alpha"]["has_transparency"]
    assert f"Licences: base {LICENCE} (not for commercial use)." in text_of(drawn)
    assert facts_of(drawn)["licences"] == {"model": LICENCE}
    recipe = read_recipe(Path(image["path"]))
    assert recipe["licences"] == {"model": LICENCE}
    assert recipe["request"]["prompt"] == "an apple"


async def test_what_a_photograph_shows_is_extracted_by_words(extracted: Any):
    [image] = facts_of(extracted)["images"]
    assert pixels(image["path"]).shape == (64, 128, 4)
    assert image["alpha"]["has_transparency"]


@pytest.mark.parametrize("which", ["drawn", "extracted"])
async def test_the_recipe_in_it_draws_it_again(client: Client, which: str, request: pytest.FixtureRequest):
    [first] = facts_of(request.getfixturevalue(which))["images"]
    [again] = facts_of(await client.call_tool("redraw_image", {"image": first["path"], "output": WAIT}))["images"]
    assert np.array_equal(pixels(first["path"]), pixels(again["path"]))


async def test_a_latent_of_it_is_a_picture_again(client: Client, drawn: Any):
    wanted = {**APPLE, "output": {**WAIT, "save_latent": True}}
    result = facts_of(await client.call_tool("generate_transparent", wanted))
    decoded = facts_of(await client.call_tool("decode_transparent_latent", {"latent": result["latents"][0]}))
    assert np.array_equal(pixels(result["images"][0]["path"]), pixels(decoded["images"][0]["path"]))


@pytest.mark.parametrize(
    ("option", "value"),
    [("strength", 0.5), ("sampler", "Euler a"), ("clip_skip", 2), ("detail", {"scale": 2}), ("loras", {"ink": 1})],
)
async def test_an_option_that_does_not_act_is_refused(client: Client, drawn: Any, option: str, value: Any):
    image = facts_of(drawn)["images"][0]["path"]
    wanted = {**APPLE, "image": image, "options": {**OPTIONS, option: value}}
    result = await client.call_tool("edit_transparent", wanted)
    assert result.is_error
    assert "Qwen-Image-2.1 models" in text_of(result)


async def test_a_task_that_it_cannot_do_is_refused(client: Client, drawn: Any):
    result = await client.call_tool("generate_layers", {"prompt": "a hill", "options": OPTIONS})
    assert result.is_error
    assert "does not do layers (generate_layers): it is for generate_transparent" in text_of(result)


async def test_progress_rises_and_a_cancelled_call_leaves_no_file(client: Client, drawn: Any, folder: Path):
    before = set((folder / "out").rglob("*"))
    long = {**APPLE, "options": {**OPTIONS, "steps": 150}}
    status, heard = await cancelled_midway(client, "generate_transparent", long)
    assert status in ("cancelling", "cancelled")
    assert set((folder / "out").rglob("*")) == before
    assert heard == sorted(heard)


async def test_it_is_listed_with_its_licence_and_is_no_default(client: Client, drawn: Any):
    models = {model["name"]: model for model in facts_of(await client.call_tool("list_models", {}))["models"]}
    own, published = models["small"], models["qwen-image-2.1"]
    assert own["tasks"] == ["transparent"]
    assert own["licence"] == published["licence"] == LICENCE
    assert (own["default"], own["commercial"], published["commercial"]) == (False, False, False)
    assert published["memory"]["in_turn"] < published["memory"]["none"]
    assert models["pocket"]["default"]
