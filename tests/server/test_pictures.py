"""compose_layers and inspect_image as a client meets them: progress, cancellation, words, hostile files."""

import itertools
import os
import struct
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import psutil
import pytest
from mcp import Client
from mcp_types import CallToolResult, ImageContent
from PIL import Image

from tests.results import facts_of, files_below, text_of

Connect = Callable[..., AbstractAsyncContextManager[Client]]

pytestmark = pytest.mark.anyio

PATIENCE = 60


def on_canvas(side: int) -> dict[str, Any]:
    """Arguments for a square canvas."""
    return {"canvas": {"size": f"{side}x{side}"}, "output": {"preview": False}}


@pytest.fixture
def dot(tmp_path: Path) -> str:
    """A picture that may be read: a red square on transparency."""
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[4:12, 4:12] = (255, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "dot.png")
    return str(tmp_path / "dot.png")


def picture_processes() -> list[psutil.Process]:
    children = psutil.Process(os.getpid()).children()
    return [child for child in children if "pictures_worker" in " ".join(child.cmdline())]


async def test_layers_are_counted_with_their_background_and_in_good_english(connect: Connect, dot: str):
    async with connect() as client:
        alone = await client.call_tool("compose_layers", {"layers": [{"image": dot}]})
        on_white = await client.call_tool("compose_layers", {"layers": [{"image": dot}], "background": "white"})
        on_picture = await client.call_tool("compose_layers", {"layers": [{"image": dot}], "background": dot})
    assert text_of(alone).startswith("Composed 1 layer: ")
    for result in (on_white, on_picture):
        assert text_of(result).startswith("Composed 2 layers: ")
        assert [layer["name"] for layer in facts_of(result)["layers"]] == ["background", "dot"]
    assert any(isinstance(block, ImageContent) for block in alone.content)


async def test_progress_of_a_composition_rises_strictly(connect: Connect, dot: str):
    heard: list[float] = []
    messages: list[str | None] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append(progress)
        messages.append(message)

    arguments = {"layers": [{"image": dot}], "background": "white", **on_canvas(2500)}
    async with connect() as client:
        facts_of(await client.call_tool("compose_layers", arguments, progress_callback=hear))
    assert len(heard) >= 3
    assert all(earlier < later for earlier, later in itertools.pairwise(heard))
    assert heard[-1] <= 100
    assert "putting layers together" in messages


async def test_a_cancelled_composition_ends_at_once_and_leaves_no_file(connect: Connect, dot: str, tmp_path: Path):
    began = anyio.Event()

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        if message == "putting layers together":
            began.set()

    arguments = {"layers": [{"image": dot}], "background": "white", **on_canvas(8000)}
    async with connect() as client:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:

                async def call() -> None:
                    await client.call_tool("compose_layers", arguments, progress_callback=hear)

                group.start_soon(call)
                await began.wait()
                (process,) = picture_processes()
                asked = time.monotonic()
                group.cancel_scope.cancel()
            while process.is_running():
                await anyio.sleep(0.01)
            assert time.monotonic() - asked < 1
        assert facts_of(await client.call_tool("list_jobs", {}))["total"] == 0
        assert facts_of(await client.call_tool("inspect_image", {"image": dot}))["width"] == 16
    assert files_below(tmp_path) == [Path(dot)]
    assert picture_processes() == []


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "trim and a canvas": ({"canvas": {"trim": True, "size": "20x20"}}, "either trim or size"),
    "a canvas too large": ({"canvas": {"size": "30000x30000"}}, "A canvas of 30000x30000 pixels is not possible"),
    "a pad too much": ({"canvas": {"size": "8000x8000", "pad": 10}}, "A canvas of 8020x8020"),
    "WebP too long": (
        {"canvas": {"size": "16384x10"}, "output": {"format": "webp"}},
        ".webp files allow 16383 pixels a side",
    ),
    "WebP too long with its pad": (
        {"canvas": {"size": "16380x9", "pad": 2}, "output": {"format": "webp"}},
        "has 16384",
    ),
    "a checkerboard below": ({"background": "checkerboard"}, "give a colour such as white"),
}


async def test_what_cannot_be_composed_is_refused_in_words(connect: Connect, dot: str, tmp_path: Path):
    async with connect() as client:
        for name, (arguments, words) in REFUSED.items():
            result = await client.call_tool("compose_layers", {"layers": [{"image": dot}], **arguments})
            assert result.is_error, name
            assert words in text_of(result), f"{name}: {text_of(result)}"
        far = {"layers": [{"image": dot, "x": 29_000, "y": 29_000}], "output": {"preview": False}}
        assert "is not possible" in text_of(await client.call_tool("compose_layers", far))
        made = facts_of(await client.call_tool("compose_layers", {**far, "canvas": {"trim": True}}))
        assert (made["width"], made["height"]) == (8, 8)
    assert len(files_below(tmp_path)) == 2


def png(width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 8, colour: int = 6) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    body = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "a bomb": (png(60_000, 60_000, (b"IDAT", zlib.compress(b""))), "is too large"),
    "a wide bomb": (png(2**31 - 1, 1, (b"IDAT", zlib.compress(b""))), "is too large"),
    "pixels cut short": (png(50, 50, (b"IDAT", zlib.compress(bytes(99))[:-4])), "damaged"),
    "no pixels": (png(50, 50), "damaged"),
    "text that unfolds": (
        png(1, 1, (b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000))), (b"IDAT", zlib.compress(bytes(5)))),
        "damaged",
    ),
    "a Photoshop document": (b"8BPS\0\1" + bytes(40), "a Photoshop document"),
    "WebP of nothing": (b"RIFF\x10\0\0\0WEBPVP8L\0\0\0\0", "Give a"),
    "32 bits a channel": (b"", "32 bits a channel"),
}


async def test_hostile_pictures_are_errors_and_the_next_call_works(connect: Connect, dot: str, tmp_path: Path):
    tiff = tmp_path / "bad-32 bits a channel.png"
    async with connect() as client:
        for name, (data, words) in HOSTILE.items():
            path = tmp_path / f"bad-{name}.png"
            path.write_bytes(data)
            if path == tiff:
                Image.fromarray(np.zeros((4, 4), np.int32)).save(tiff, "TIFF")
            calls: list[CallToolResult] = [
                await client.call_tool("inspect_image", {"image": str(path)}),
                await client.call_tool("compose_layers", {"layers": [{"image": dot}, {"image": str(path)}]}),
                await client.call_tool("compose_layers", {"layers": [{"image": dot}], "background": str(path)}),
            ]
            for result in calls:
                assert result.is_error, name
                assert words in text_of(result), f"{name}: {text_of(result)}"
                assert "unexpected" not in text_of(result)
        assert facts_of(await client.call_tool("inspect_image", {"image": dot}))["width"] == 16
    assert files_below(tmp_path / "out") == []


async def test_the_server_imports_nothing_that_decodes_pictures():
    program = "import sys, layerdiffuse_mcp.server.app; print(*{'numpy', 'cv2', 'PIL'}.intersection(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ran = await anyio.run_process([sys.executable, "-c", program], env=environment)
    assert ran.stdout.split() == []
