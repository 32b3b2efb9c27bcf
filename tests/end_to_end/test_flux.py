"""Transparent pictures by FLUX.1-dev, through a client: a base of the real classes, as diffusers saves it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcp import Client
from PIL import Image

from layerdiffuse_mcp.families.flux import CODEC, LICENCE, TRANSPARENT
from layerdiffuse_mcp.recipes.recipe import BASE, read_recipe
from tests.end_to_end.cancelling import cancelled_midway
from tests.flux_base import write
from tests.results import facts_of, text_of

pytestmark = pytest.mark.anyio

WAIT = {"wait_seconds": 600}
OPTIONS: dict[str, Any] = {"model": "flux-small", "steps": 1, "fit": "as_is"}
APPLE: dict[str, Any] = {"prompt": "an apple", "size": "64x64", "seed": 7, "options": OPTIONS, "output": WAIT}


@pytest.fixture(scope="module")
async def client(folder: Path, connect: Callable[..., AbstractAsyncContextManager[Client]]) -> AsyncIterator[Client]:
    """On a server that has the models folder of this module."""
    write(folder / "models")
    async with connect() as opened:
        yield opened


@pytest.fixture(scope="module")
async def drawn(client: Client) -> Any:
    return await client.call_tool("generate_transparent", APPLE)


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


async def test_a_call_draws_a_picture_with_alpha_and_says_its_licence(drawn: Any):
    [image] = facts_of(drawn)["images"]
    assert pixels(image["path"]).shape == (64, 64, 4)
    assert image["alpha"]["has_transparency"]
    assert LICENCE in text_of(drawn)
    assert facts_of(drawn)["licences"] == dict.fromkeys((BASE, TRANSPARENT.file, CODEC.decoder), LICENCE)
    assert read_recipe(Path(image["path"]))["licences"] == facts_of(drawn)["licences"]


async def test_the_recipe_in_it_draws_it_again(client: Client, drawn: Any):
    [image] = facts_of(drawn)["images"]
    again = facts_of(await client.call_tool("redraw_image", {"image": image["path"], "output": WAIT}))["images"]
    assert np.array_equal(pixels(image["path"]), pixels(again[0]["path"]))


async def test_a_picture_is_changed_by_its_words(client: Client, drawn: Any):
    path = facts_of(drawn)["images"][0]["path"]
    options = {**OPTIONS, "strength": 0.5}
    wanted = {"image": path, "prompt": "a pear", "seed": 1, "options": options, "output": WAIT}
    result = await client.call_tool("edit_transparent", {**wanted, "size": "64x64"})
    [edited] = facts_of(result)["images"]
    assert pixels(edited["path"]).shape == (64, 64, 4)
    refused = await client.call_tool("edit_transparent", {**wanted, "mask": path})
    assert refused.is_error
    assert "mask would change nothing: FLUX.1-dev models do not act on it" in text_of(refused)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("negative_prompt", "a pear"),
        ("sampler", "Euler a"),
        ("clip_skip", 2),
        ("detail", {"scale": 2, "strength": 0.3}),
        ("loras", {"ink": 1}),
    ],
)
async def test_an_option_that_does_not_act_is_refused(client: Client, option: str, value: Any):
    wanted = {**APPLE, "options": {**OPTIONS, option: value}}
    result = await client.call_tool("generate_transparent", wanted)
    assert result.is_error
    assert "FLUX.1-dev models" in text_of(result)


async def test_a_task_that_it_cannot_do_is_refused(client: Client):
    result = await client.call_tool("generate_layers", {"prompt": "a hill", "options": OPTIONS})
    assert result.is_error
    assert "does not do layers (generate_layers): it is for generate_transparent" in text_of(result)


async def test_progress_rises_and_a_cancelled_call_leaves_no_file(client: Client, drawn: Any, folder: Path):
    before = set((folder / "out").rglob("*"))
    status, heard = await cancelled_midway(
        client, "generate_transparent", {**APPLE, "options": {**OPTIONS, "steps": 150}}
    )
    assert status in ("cancelling", "cancelled")
    assert set((folder / "out").rglob("*")) == before
    assert heard == sorted(heard)


async def test_it_is_listed_with_its_licence_and_is_no_default(client: Client):
    models = {model["name"]: model for model in facts_of(await client.call_tool("list_models", {}))["models"]}
    own, published = models["flux-small"], models["flux-1-dev"]
    assert own["tasks"] == ["transparent"]
    assert (own["default"], own["commercial"], published["commercial"]) == (False, False, False)
    assert published["layer_licences"] == [LICENCE]
    assert published["memory"]["in_turn"] < published["memory"]["none"]
    assert models["pocket"]["default"]
