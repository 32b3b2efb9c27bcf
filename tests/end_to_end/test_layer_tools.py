"""Every layer tool draws its layers, for both families, on narrow models in the official file formats."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcp import Client
from PIL import Image

from tests.narrow import write_models

pytestmark = [pytest.mark.anyio, pytest.mark.own_server(), pytest.mark.usefixtures("two_threads")]

QUICK = {"prompt": "a cup", "seed": 1, "size": "64x64", "output": {"preview": False, "wait_seconds": 600}}
BLENDED = ["blended"]
CALLS: dict[str, tuple[str, str, tuple[str, ...], list[str]]] = {
    "joint": ("generate_layers", "tiny-sd15", (), ["foreground", "background", "blended"]),
    "fg2bg": ("generate_background_from_foreground", "tiny-sd15", ("foreground",), ["background", "blended"]),
    "bg2fg": ("generate_foreground_from_background", "tiny-sd15", ("background",), ["foreground", "blended"]),
    "fg2ble, fgble2bg": (
        "generate_background_from_foreground", "tiny-sdxl", ("foreground",), ["blended", "background"]
    ),
    "bg2ble, bgble2fg": (
        "generate_foreground_from_background", "tiny-sdxl", ("background",), ["blended", "foreground"]
    ),
    "fg2ble": ("generate_background_from_foreground", "tiny-sdxl", ("foreground",), BLENDED),
    "bg2ble": ("generate_foreground_from_background", "tiny-sdxl", ("background",), BLENDED),
    "fg2bg, blended alone": ("generate_background_from_foreground", "tiny-sd15", ("foreground",), BLENDED),
    "bgble2fg": ("extract_layer", "tiny-sdxl", ("blended", "background"), ["foreground"]),
    "fgble2bg": ("extract_layer", "tiny-sdxl", ("blended", "foreground"), ["background"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers")
    write_models(folder / "models")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "given.png")
    return folder


@pytest.mark.parametrize("case", CALLS)
async def test_a_layer_tool_draws_its_layers(client: Client, folder: Path, case: str) -> None:
    tool, model, inputs, roles = CALLS[case]
    arguments: dict[str, Any] = {**QUICK, **{role: str(folder / "given.png") for role in inputs}}
    arguments["options"] = {"model": model, "steps": 2}
    if roles == BLENDED:
        arguments["want"] = BLENDED
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert result.structured_content is not None
    given = [image for image in result.structured_content["images"] if image["role"] == "composed"]
    assert len(given) == (tool == "generate_foreground_from_background" and roles != BLENDED)
    images = [image for image in result.structured_content["images"] if image["role"] != "composed"]
    assert [image["role"] for image in images] == roles
    for image in images:
        with Image.open(image["path"]) as picture:
            assert picture.size == (64, 64)
            assert (picture.mode == "RGBA") == (image["role"] == "foreground") == ("alpha" in image)


async def test_a_picture_of_two_stages_is_drawn_again_from_itself(client: Client, folder: Path) -> None:
    arguments = {**QUICK, "options": {"model": "tiny-sdxl", "steps": 2}, "foreground": str(folder / "given.png")}
    first = await client.call_tool("generate_background_from_foreground", arguments)
    assert first.structured_content is not None
    source = first.structured_content["images"][1]["path"]
    again = await client.call_tool("redraw_image", {"image": source, "output": {"wait_seconds": 600}})
    assert not again.is_error, again.content
    assert again.structured_content is not None
    with Image.open(source) as old, Image.open(again.structured_content["images"][1]["path"]) as new:
        assert np.array_equal(np.asarray(old), np.asarray(new))
