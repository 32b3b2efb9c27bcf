"""make_sheet as a client meets it: one call, three files that belong together, and words for what cannot be."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcp import Client
from mcp_types import ImageContent
from PIL import Image

from tests.results import facts_of, text_of

Connect = Callable[..., AbstractAsyncContextManager[Client]]

pytestmark = pytest.mark.anyio


@pytest.fixture
def pictures(tmp_path: Path) -> list[dict[str, Any]]:
    """Eight pictures; two have the same name."""
    given: list[dict[str, Any]] = []
    for number in range(8):
        folder = tmp_path / f"folder-{number // 7}"
        folder.mkdir(exist_ok=True)
        pixels = np.zeros((48, 48, 4), np.uint8)
        pixels[8:40, 10 : 20 + 2 * number] = (20 * number, 90, 200, 255)
        path = folder / f"walk-{number % 7}.png"
        Image.fromarray(pixels).save(path)
        given.append({"image": str(path)})
    return given


async def test_one_call_makes_a_sheet_and_its_atlas(connect: Connect, pictures: list[dict[str, Any]]):
    async with connect() as client:
        result = await client.call_tool("make_sheet", {"images": pictures, "output": {"name": "Hero walk"}})
        found = facts_of(result)
        again = await client.call_tool("inspect_image", {"image": found["uri"], "preview": False})
        assert facts_of(again)["width"] == found["width"]
    sheet = Image.open(found["path"])
    assert Path(found["path"]).name.endswith("-sheet.png") or "hero-walk" in found["path"]
    by_name, in_order = (json.loads(Path(found[key]).read_text()) for key in ("atlas", "atlas_array"))
    for atlas in (by_name, in_order):
        assert (Path(found["atlas"]).parent / atlas["meta"]["image"]).samefile(found["path"])
        assert atlas["meta"]["size"] == {"w": sheet.width, "h": sheet.height}
    assert next(iter(by_name["frames"])) == "walk-0"
    assert list(by_name["frames"])[7] == "walk-0-2"
    for frame, given in zip(by_name["frames"].values(), pictures, strict=True):
        box = frame["frame"]
        part = sheet.crop((box["x"], box["y"], box["x"] + box["w"], box["y"] + box["h"]))
        original = Image.open(given["image"])
        assert np.array_equal(np.asarray(part), np.asarray(original.crop(original.getbbox())))
    assert text_of(result).startswith("Made a sheet of 8 pictures: ")
    assert any(isinstance(block, ImageContent) for block in result.content)
    assert [frame["name"] for frame in found["frames"]] == list(by_name["frames"])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a cell that is none": ({"cell": "large"}, '"128x128"'),
    "a cell of nothing": ({"cell": "0x10"}, "1 to 4096 each"),
    "a cell too large": ({"cell": "5000x10"}, "1 to 4096 each"),
    "a sheet too large": ({"cell": "4096x4096"}, "The sheet would have"),
    "an unknown anchor": ({"anchor": "foot"}, "unknown anchor"),
    "an unknown fit": ({"fit": "cover"}, "unknown fit"),
    "a PSD": ({"output": {"format": "psd"}}, "unknown format"),
}


async def test_what_cannot_be_a_sheet_is_refused_in_words(
    connect: Connect, pictures: list[dict[str, Any]], tmp_path: Path
):
    async with connect() as client:
        for name, (arguments, words) in REFUSED.items():
            result = await client.call_tool("make_sheet", {"images": pictures, **arguments})
            assert result.is_error, name
            assert words in text_of(result), f"{name}: {text_of(result)}"
        missing = await client.call_tool("make_sheet", {"images": [{"image": str(tmp_path / "none.png")}]})
        assert "There is no file" in text_of(missing)
    assert not (tmp_path / "out").exists()
