"""Pictures to put together, and compositions of them, for the tests."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from layerdiffuse_mcp.api.layers import LayerOptions, Shadow
from layerdiffuse_mcp.errors import ImageError
from layerdiffuse_mcp.images.composition import Kept, Wanted, read_kept
from layerdiffuse_mcp.images.files import sha256
from layerdiffuse_mcp.images.png import png_bytes
from layerdiffuse_mcp.images.tasks import Composed, ComposeTask, PlacedFile
from layerdiffuse_mcp.images.work import run


def put_together(folder: Path, *layers: PlacedFile, **more) -> Composed:
    return run(ComposeTask(layers, **more))


def lamp(folder: Path, **fields) -> PlacedFile:
    return PlacedFile(folder / "red.png", "lamp", LayerOptions(**fields))


def kept_in(data: bytes, name: str = "a.png", max_pixels: int = 10_000) -> Kept:
    with io.BytesIO(data) as file:
        file.name = name
        return read_kept(file, max_pixels)


def again(kept: Kept, folder: Path, **changes) -> Composed:
    """A kept composition put together once more, its pictures found by their SHA-256."""

    def find(wanted):
        for path in folder.glob("*.png"):
            with path.open("rb") as file:
                if sha256(file) == wanted.sha256:
                    return path
        raise ImageError("none")

    wanted = Wanted.of([], kept=kept, **changes)
    return run(wanted.task(lambda name: folder / name, find, suffix=".png"))


def pixels(composed: Composed) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(composed.data)))


def dot(folder: Path, **fields) -> PlacedFile:
    """A layer that is opaque to its edges, 20 x 20."""
    (folder / "dot.png").write_bytes(png_bytes(np.full((20, 20, 4), 255, np.uint8)))
    return PlacedFile(folder / "dot.png", "dot", LayerOptions(**fields))


OUTLINE = Shadow(dx=0, dy=0, blur=0, spread=5, colour="red", opacity=1)


def photo(folder: Path, **fields) -> PlacedFile:
    """A layer that is opaque but for its corners, 90 x 60."""
    pixels = np.full((60, 90, 4), 255, np.uint8)
    pixels[::59, ::89] = 0
    (folder / "photo.png").write_bytes(png_bytes(pixels))
    return PlacedFile(folder / "photo.png", "photo", LayerOptions(**fields))


SOFT = Shadow(dy=4, blur=8)


def dot_named(folder: Path, name: str, **fields) -> PlacedFile:
    return PlacedFile(dot(folder).path, name, LayerOptions(**fields))
