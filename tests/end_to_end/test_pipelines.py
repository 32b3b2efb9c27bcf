"""Families that diffusers' own pipelines draw, through a client: bases of the real classes, with random weights.

They share a server, whose worker imports transformers and those pipelines once.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcp import Client
from PIL import Image

from layerdiffuse_mcp.families import flux as flux_card
from layerdiffuse_mcp.families import qwen21 as qwen21_card
from layerdiffuse_mcp.recipes.recipe import BASE, read_recipe
from tests import flux_base, layered_base, qwen21_base
from tests.end_to_end.cancelling import cancelled_midway
from tests.results import facts_of, files_below, text_of

pytestmark = pytest.mark.anyio

WAIT = {"wait_seconds": 600}
APPLE: dict[str, Any] = {"prompt": "an apple", "size": "64x64", "seed": 7, "output": WAIT}
FLUX: dict[str, Any] = {**APPLE, "options": {"model": "flux-small", "steps": 1, "fit": "as_is"}}
QWEN21: dict[str, Any] = {**APPLE, "options": {"model": "qwen21-small", "steps": 2, "fit": "as_is"}}
EXTRACT: dict[str, Any] = {**QWEN21, "image": "photo.png", "prompt": "Extract the apple", "size": "128x64"}
FAIR: dict[str, Any] = {
    "image": "poster.png",
    "prompt": "a fair",
    "layers": 2,
    "seed": 7,
    "options": {"steps": 1, "document": "psd"},
    "output": WAIT,
}
FLUX_FILES = (BASE, flux_card.TRANSPARENT.file, flux_card.CODEC.decoder)
PHOTO, POSTER = (80, 40), (60, 40)
"""Sizes of the given pictures, of which the first is opaque."""


@pytest.fixture(scope="module")
async def client(folder: Path, connect: Callable[..., AbstractAsyncContextManager[Client]]) -> AsyncIterator[Client]:
    """On a server that has the models folder and the pictures of this module."""
    flux_base.write(folder / "models")
    qwen21_base.write(folder / "models" / "qwen21-small")
    layered_base.write(folder / "models" / "layered")
    for name, size, channels in ("photo.png", PHOTO, 3), ("poster.png", POSTER, 4):
        noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], channels), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    async with connect() as opened:
        yield opened


@pytest.fixture(scope="module")
async def flux(client: Client) -> Any:
    return await client.call_tool("generate_transparent", FLUX)


@pytest.fixture(scope="module")
async def qwen21(client: Client) -> Any:
    return await client.call_tool("generate_transparent", QWEN21)


@pytest.fixture(scope="module")
async def extracted(client: Client) -> Any:
    return await client.call_tool("edit_transparent", EXTRACT)


@pytest.fixture(scope="module")
async def apart(client: Client) -> Any:
    return await client.call_tool("decompose_image", FAIR)


@pytest.fixture
def drawn(request: pytest.FixtureRequest) -> Any:
    """What the call named by the parameter returned."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def taken(apart: Any) -> dict[str, Any]:
    """The layers of the poster."""
    return facts_of(apart)


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


@pytest.mark.parametrize(
    ("drawn", "says", "licences"),
    [
        ("flux", flux_card.LICENCE, dict.fromkeys(FLUX_FILES, flux_card.LICENCE)),
        ("qwen21", f"Licences: base {qwen21_card.LICENCE} (not for commercial use).", {BASE: qwen21_card.LICENCE}),
    ],
    indirect=["drawn"],
    ids=["flux", "qwen21"],
)
async def test_a_call_draws_a_picture_with_alpha_and_says_its_licence(drawn: Any, says: str, licences: dict[str, str]):
    [image] = facts_of(drawn)["images"]
    assert pixels(image["path"]).shape == (64, 64, 4)
    assert image["alpha"]["has_transparency"]
    assert says in text_of(drawn)
    recipe = read_recipe(Path(image["path"]))
    assert facts_of(drawn)["licences"] == recipe["licences"] == licences
    assert recipe["request"]["prompt"] == "an apple"


@pytest.mark.parametrize("drawn", ["flux", "qwen21", "extracted", "apart"], indirect=True)
async def test_the_recipe_in_it_draws_it_again(client: Client, drawn: Any):
    images = facts_of(drawn)["images"]
    again = facts_of(await client.call_tool("redraw_image", {"image": images[0]["path"], "output": WAIT}))["images"]
    for first, second in zip(images, again, strict=True):
        assert np.array_equal(pixels(first["path"]), pixels(second["path"]))


@pytest.mark.parametrize(
    ("title", "call", "option", "value"),
    [
        ("FLUX.1-dev", FLUX, "negative_prompt", "a pear"),
        ("FLUX.1-dev", FLUX, "sampler", "Euler a"),
        ("FLUX.1-dev", FLUX, "clip_skip", 2),
        ("FLUX.1-dev", FLUX, "detail", {"scale": 2, "strength": 0.3}),
        ("FLUX.1-dev", FLUX, "loras", {"ink": 1}),
        ("Qwen-Image-2.1", EXTRACT, "strength", 0.5),
        ("Qwen-Image-2.1", EXTRACT, "sampler", "Euler a"),
        ("Qwen-Image-2.1", EXTRACT, "clip_skip", 2),
        ("Qwen-Image-2.1", EXTRACT, "detail", {"scale": 2}),
        ("Qwen-Image-2.1", EXTRACT, "loras", {"ink": 1}),
    ],
)
async def test_an_option_that_does_not_act_is_refused(
    client: Client, title: str, call: dict[str, Any], option: str, value: Any
):
    tool = "edit_transparent" if "image" in call else "generate_transparent"
    result = await client.call_tool(tool, {**call, "options": {**call["options"], option: value}})
    assert result.is_error
    assert f"{title} models" in text_of(result)


@pytest.mark.parametrize("call", [FLUX, QWEN21], ids=["flux", "qwen21"])
async def test_a_task_that_it_cannot_do_is_refused(client: Client, call: dict[str, Any]):
    result = await client.call_tool("generate_layers", {"prompt": "a hill", "options": call["options"]})
    assert result.is_error
    assert "does not do layers (generate_layers): it is for generate_transparent" in text_of(result)


@pytest.mark.parametrize(
    ("tool", "call"),
    [("generate_transparent", FLUX), ("generate_transparent", QWEN21), ("decompose_image", FAIR)],
    ids=["flux", "qwen21", "layered"],
)
async def test_progress_rises_and_a_cancelled_call_leaves_no_file(
    client: Client, tool: str, call: dict[str, Any], folder: Path
):
    before = files_below(folder / "out")
    status, heard = await cancelled_midway(client, tool, {**call, "options": {**call["options"], "steps": 150}})
    assert status in ("cancelling", "cancelled")
    assert files_below(folder / "out") == before
    assert heard == sorted(heard)


async def test_bases_are_listed_with_their_licences_and_are_no_default(client: Client):
    models = {model["name"]: model for model in facts_of(await client.call_tool("list_models", {}))["models"]}
    for small, full in ("flux-small", "flux-1-dev"), ("qwen21-small", "qwen-image-2.1"):
        own, published = models[small], models[full]
        assert own["tasks"] == ["transparent"]
        assert (own["default"], own["commercial"], published["commercial"]) == (False, False, False)
        assert published["memory"]["in_turn"] < published["memory"]["none"]
    assert models["flux-1-dev"]["layer_licences"] == [flux_card.LICENCE]
    assert models["qwen21-small"]["licence"] == models["qwen-image-2.1"]["licence"] == qwen21_card.LICENCE
    assert models["layered"]["tasks"] == ["decompose"]
    assert not models["layered"]["default"]
    assert models["pocket"]["default"]


async def test_flux_changes_a_picture_by_its_words(client: Client, flux: Any):
    path = facts_of(flux)["images"][0]["path"]
    options = {**FLUX["options"], "strength": 0.5}
    wanted = {**FLUX, "image": path, "prompt": "a pear", "seed": 1, "options": options}
    [edited] = facts_of(await client.call_tool("edit_transparent", wanted))["images"]
    assert pixels(edited["path"]).shape == (64, 64, 4)
    refused = await client.call_tool("edit_transparent", {**wanted, "mask": path})
    assert refused.is_error
    assert "mask would change nothing: FLUX.1-dev models do not act on it" in text_of(refused)


async def test_qwen21_extracts_what_a_photograph_shows_by_words(extracted: Any):
    [image] = facts_of(extracted)["images"]
    assert pixels(image["path"]).shape == (64, 128, 4)
    assert image["alpha"]["has_transparency"]


async def test_a_latent_of_qwen21_is_a_picture_again(client: Client):
    wanted = {**QWEN21, "output": {**WAIT, "save_latent": True}}
    result = facts_of(await client.call_tool("generate_transparent", wanted))
    decoded = facts_of(await client.call_tool("decode_transparent_latent", {"latent": result["latents"][0]}))
    assert np.array_equal(pixels(result["images"][0]["path"]), pixels(decoded["images"][0]["path"]))


async def test_layers_have_names_and_places_and_lie_in_one_document(taken: dict[str, Any]):
    *layers, composed = taken["images"]
    assert [layer["role"] for layer in layers] == ["layer 1", "layer 2"]
    for layer in layers:
        left, top, right, bottom = layer.get("box", (0, 0, *POSTER))
        assert pixels(layer["path"]).shape == (bottom - top, right - left, 4)
    assert (composed["role"], composed["width"], composed["height"]) == ("composed", *POSTER)
    document, kept = taken["documents"]
    assert (Path(document).suffix, Path(kept).name[-12:]) == (".psd", ".layers.json")


async def test_the_result_says_how_far_its_layers_are_from_the_picture(taken: dict[str, Any], folder: Path):
    def seen(path: str | Path) -> np.ndarray:
        rgba = pixels(path).astype(float)
        rgba[..., :3] *= rgba[..., 3:] / 255
        return rgba

    composed = taken["images"][-1]
    apart = np.abs(seen(folder / "poster.png") - seen(composed["path"])).mean()
    assert f"differ from poster.png by {apart:.2f} of 255 on average" in composed["note"]
    assert composed["verdict"] == ("doubtful" if apart >= 20 else None)


@pytest.mark.parametrize("which", ["composed", "document"])
async def test_one_layer_is_changed_in_the_composition(client: Client, taken: dict[str, Any], which: str):
    source = taken["images"][-1]["path"] if which == "composed" else taken["documents"][0]
    replace = {"layer 2": {"visible": False}}
    output = {"format": "png"}
    changed = facts_of(
        await client.call_tool("compose_layers", {"source": source, "replace": replace, "output": output})
    )
    assert [(layer["name"], layer["visible"]) for layer in changed["layers"]] == [("layer 1", True), ("layer 2", False)]
    left, top, right, bottom = taken["images"][0].get("box", (0, 0, *POSTER))
    assert np.array_equal(pixels(changed["path"])[top:bottom, left:right], pixels(taken["images"][0]["path"]))


async def test_what_does_not_act_on_taking_apart_is_refused(client: Client, taken: dict[str, Any]):
    changes = {"options": {"sampler": "Euler a"}}
    result = await client.call_tool("redraw_image", {"image": taken["images"][0]["path"], "changes": changes})
    assert "sampler" in text_of(result)
    assert result.is_error
    result = await client.call_tool("decompose_image", {**FAIR, "layers": 9, "depth": 2})
    assert "9 layers at depth 2 are 81: at most 64" in text_of(result)


async def test_with_depth_a_layer_is_taken_apart_as_the_picture_was(client: Client):
    result = await client.call_tool("decompose_image", {**FAIR, "depth": 2, "options": {"steps": 1}})
    *layers, _ = facts_of(result)["images"]
    assert [layer["role"] for layer in layers] == ["layer 1.1", "layer 1.2", "layer 2.1", "layer 2.2"]
    assert Path(facts_of(result)["documents"][0]).suffix == ".ora"
    assert f"All layers: {facts_of(result)['documents'][0]}" in text_of(result)
