"""The atlas of a sheet as JSON, in the two forms that Phaser, PixiJS and TexturePacker's loaders read.

    atlas_hash(sheet.frames, "sheet.png", (512, 256))     # frames by name: PixiJS, Phaser's atlas()
    atlas_array(sheet.frames, "sheet.png", (512, 256))    # frames in order: TexturePacker's "JSON (Array)"

Nothing heavy is imported.
"""

import json
from collections.abc import Sequence
from typing import Any

from layerdiffuse_mcp import __version__
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.tasks import Frame

APP = "layerdiffuse-mcp"


def atlas_hash(frames: Sequence[Frame], image: str, size: tuple[int, int]) -> bytes:
    """The frames by name; `image` is the sheet's file name, `size` its width and height."""
    return _encoded({frame.name: _frame(frame) for frame in frames}, image, size)


def atlas_array(frames: Sequence[Frame], image: str, size: tuple[int, int]) -> bytes:
    """The frames in order, each with its name."""
    return _encoded([{"filename": frame.name, **_frame(frame)} for frame in frames], image, size)


def unique_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with a number behind those that occurred before.

    Raises:
        InvalidRequest: a name is empty.
    """
    found: list[str] = []
    for name in names:
        if not name.strip():
            raise InvalidRequest("A picture of the sheet has an empty name: give each a name of its own, or none.")
        number, free = 1, name
        while free in found:
            number += 1
            free = f"{name}-{number}"
        found.append(free)
    return tuple(found)


def _frame(frame: Frame) -> dict[str, Any]:
    return {
        "frame": _box(frame.box),
        "rotated": False,
        "trimmed": frame.source != (0, 0, *frame.canvas),
        "spriteSourceSize": _box(frame.source),
        "sourceSize": dict(zip("wh", frame.canvas, strict=True)),
    }


def _box(box: tuple[int, int, int, int]) -> dict[str, int]:
    return dict(zip("xywh", box, strict=True))


def _encoded(frames: Any, image: str, size: tuple[int, int]) -> bytes:
    meta = {
        "app": APP,
        "version": __version__,
        "image": image,
        "format": "RGBA8888",
        "size": dict(zip("wh", size, strict=True)),
        "scale": "1",
    }
    return json.dumps({"frames": frames, "meta": meta}, ensure_ascii=False, indent=1).encode()
