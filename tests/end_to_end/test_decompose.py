"""Taking a picture apart, through a client: a base of the real classes, as diffusers saves it, with random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcp import Client
from PIL import Image

from tests.end_to_end.cancelling import cancelled_midway
from tests.layered_base import write
from tests.results import facts_of, text_of

pytestmark = [pytest.mark.anyio, pytest.mark.own_server()]

WAIT = {"wait_seconds": 600}
SIZE = (60, 40)


@pytest.fixture(scope="module")
def poster(folder: Path) -> str:
    """A picture to take apart, and a base that does."""
    write(folder / "models" / "layered")
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 4), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "poster.png")
    return str(folder / "poster.png")


@pytest.fixture(scope="module")
def asked(poster: str) -> dict[str, Any]:
    options = {"steps": 1, "document": "psd"}
    return {"image": poster, "prompt": "a fair", "layers": 2, "seed": 7, "options": options, "output": WAIT}


@pytest.fixture(scope="module")
async def taken(client: Client, asked: dict[str, Any]) -> dict[str, Any]:
    return facts_of(await client.call_tool("decompose_image", asked))


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


async def test_layers_have_names_and_places_and_lie_in_one_document(taken: dict[str, Any]):
    *layers, composed = taken["images"]
    assert [layer["role"] for layer in layers] == ["layer 1", "layer 2"]
    for layer in layers:
        left, top, right, bottom = layer.get("box", (0, 0, *SIZE))
        assert pixels(layer["path"]).shape == (bottom - top, right - left, 4)
    assert (composed["role"], composed["width"], composed["height"]) == ("composed", *SIZE)
    document, kept = taken["documents"]
    assert (Path(document).suffix, Path(kept).name[-12:]) == (".psd", ".layers.json")


async def test_the_result_says_how_far_its_layers_are_from_the_picture(taken: dict[str, Any], poster: str):
    def seen(path: str) -> np.ndarray:
        rgba = pixels(path).astype(float)
        rgba[..., :3] *= rgba[..., 3:] / 255
        return rgba

    composed = taken["images"][-1]
    apart = np.abs(seen(poster) - seen(composed["path"])).mean()
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
    left, top, right, bottom = taken["images"][0].get("box", (0, 0, *SIZE))
    assert np.array_equal(pixels(changed["path"])[top:bottom, left:right], pixels(taken["images"][0]["path"]))


async def test_the_recipe_in_a_layer_takes_the_picture_apart_again(client: Client, taken: dict[str, Any]):
    again = await client.call_tool("redraw_image", {"image": taken["images"][1]["path"], "output": WAIT})
    for first, second in zip(taken["images"], facts_of(again)["images"], strict=True):
        assert np.array_equal(pixels(first["path"]), pixels(second["path"]))


async def test_an_option_that_does_not_act_is_refused(client: Client, taken: dict[str, Any], asked: dict[str, Any]):
    changes = {"options": {"sampler": "Euler a"}}
    result = await client.call_tool("redraw_image", {"image": taken["images"][0]["path"], "changes": changes})
    assert "sampler" in text_of(result)
    assert result.is_error
    result = await client.call_tool("decompose_image", {**asked, "layers": 9, "depth": 2})
    assert "9 layers at depth 2 are 81: at most 64" in text_of(result)


async def test_progress_rises_and_a_cancelled_call_leaves_no_file(
    client: Client, taken: dict[str, Any], asked: dict[str, Any], folder: Path
):
    before = set((folder / "out").rglob("*"))
    status, heard = await cancelled_midway(client, "decompose_image", {**asked, "options": {"steps": 150}})
    assert status in ("cancelling", "cancelled")
    assert set((folder / "out").rglob("*")) == before
    assert heard == sorted(heard)


async def test_with_depth_a_layer_is_taken_apart_as_the_picture_was(client: Client, asked: dict[str, Any]):
    deep = {**asked, "depth": 2, "options": {"steps": 1}}
    result = await client.call_tool("decompose_image", deep)
    *layers, _ = facts_of(result)["images"]
    assert [layer["role"] for layer in layers] == ["layer 1.1", "layer 1.2", "layer 2.1", "layer 2.2"]
    assert Path(facts_of(result)["documents"][0]).suffix == ".ora"
    assert f"All layers: {facts_of(result)['documents'][0]}" in text_of(result)


async def test_the_base_is_listed_and_draws_nothing_by_default(client: Client, taken: dict[str, Any]):
    models = facts_of(await client.call_tool("list_models", {}))["models"]
    [own] = [model for model in models if model["name"] == "layered"]
    assert own["tasks"] == ["decompose"]
    assert not own["default"]
