"""The call that docs/tools.md shows for each tool is taken by a server as it stands."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from PIL import Image, ImageDraw

from docs.tools import CALLS
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.settings import Settings
from tests.hub.files import SDXL_KEYS, tensors, write
from tests.results import facts_of, text_of

Connect = Callable[..., AbstractAsyncContextManager[Client]]

AN_ID = "job-863032aa"
BASE = "juggernautXL_version6Rundiffusion.safetensors"

pytestmark = pytest.mark.anyio


@pytest.fixture
def project(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the calls name, where the server works; an SDXL base with its layer files."""
    for name in ("apple", "walk-1", "walk-2"):
        _with_disc(Image.new("RGBA", (128, 128))).save(tmp_path / f"{name}.png")
    for name, colour in {
        "mug": "white",
        "poster": "white",
        "photo": "skyblue",
        "room": "tan",
        "cat-in-room": "tan",
    }.items():
        _with_disc(Image.new("RGB", (128, 128), colour)).save(tmp_path / f"{name}.png")
    latent = tensors({"latent": (4, 16, 16)}, {"family": "sd15"})
    write(tmp_path / "apple.safetensors", latent)
    write(settings.models_dir / BASE, tensors(SDXL_KEYS))
    for name in FAMILIES["sdxl"].layer_files():
        write(settings.models_dir / name, tensors({"weight": (1,)}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _with_disc(picture: Image.Image) -> Image.Image:
    ImageDraw.Draw(picture).ellipse((32, 32, 96, 96), fill="red")
    return picture


async def test_every_call_of_the_page_is_taken(connect: Connect, project: Path):
    async with connect(model="pocket") as client:
        drawn = facts_of(await client.call_tool("generate_transparent", {"prompt": "square red"}))
        for tool, arguments in CALLS.items():
            given: dict[str, Any] = json.loads(json.dumps(arguments).replace(AN_ID, drawn["job_id"]))
            result = await client.call_tool(tool, _without_waiting(tool, given))
            lacks = tool == "decompose_image" and "is not on this machine. Fetch it" in text_of(result)  # 58 GB
            assert lacks or not result.is_error, (tool, text_of(result))


def _without_waiting(tool: str, given: dict[str, Any]) -> dict[str, Any]:
    """The call as it stands, but that a drawing is not waited for: what can be refused is refused before."""
    schema = json.loads((Path(__file__).parent / f"snapshots/{tool}.json").read_text())["inputSchema"]
    if "wait_seconds" in schema["properties"].get("output", {}).get("properties", {}):
        given["output"] = given.get("output", {}) | {"wait_seconds": 0}
    return given
