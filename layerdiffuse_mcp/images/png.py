"""PNG files that carry the recipe they were made from.

    path = write_png(folder / "red-apple.png", rgba, recipe=request_as_dict, parameters=infotext)
    read_recipe(path)       # the same dict, next year too

The recipe is JSON in an iTXt chunk `layerdiffuse`; `parameters` is the line that A1111 and its relatives write and
read. Both stand before the pixels, so reading them decodes nothing.
"""

import io
import json
from pathlib import Path
from typing import Any, cast

from PIL import Image, PngImagePlugin

from layerdiffuse_mcp.errors import ImageError
from layerdiffuse_mcp.images.alpha import Bytes
from layerdiffuse_mcp.images.files import write_atomically
from layerdiffuse_mcp.images.read import opened

RECIPE_KEY = "layerdiffuse"
PARAMETERS_KEY = "parameters"


def write_png(
    path: Path, picture: Bytes, *, recipe: dict[str, Any] | None = None, parameters: str | None = None
) -> Path:
    """Write `picture` (H, W, 4 or 3), uint8, straight alpha, under a new name; returns the path it got.

    The colour below transparent pixels is kept.

    Raises:
        OutputError: the folder cannot be written.
    """
    return write_atomically(path, png_bytes(picture, recipe=recipe, parameters=parameters))


def png_bytes(picture: Bytes, *, recipe: dict[str, Any] | None = None, parameters: str | None = None) -> bytes:
    """A PNG file of `picture` (H, W, 4 or 3), uint8, as `write_png` writes it."""
    text = PngImagePlugin.PngInfo()
    if recipe is not None:
        text.add_itxt(RECIPE_KEY, json.dumps(recipe, ensure_ascii=False, allow_nan=False))
    if parameters is not None:
        text.add_itxt(PARAMETERS_KEY, parameters)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", pnginfo=text, compress_level=6)
    return buffer.getvalue()


def read_recipe(path: Path) -> dict[str, Any] | None:
    """The recipe inside a picture that `write_png` wrote; None if it has none.

    Raises:
        ImageError: not a picture, or its recipe is damaged.
    """
    text = _text(path, RECIPE_KEY)
    if text is None:
        return None
    try:
        recipe = json.loads(text)
    except ValueError as error:
        raise ImageError(f"{path}: the recipe inside is damaged ({error}).") from error
    if not isinstance(recipe, dict):
        raise ImageError(f"{path}: the recipe inside is damaged (no table of settings).")
    return cast(dict[str, Any], recipe)


def read_parameters(path: Path) -> str | None:
    """The A1111 `parameters` text inside a picture; None if it has none.

    Raises:
        ImageError: not a picture.
    """
    return _text(path, PARAMETERS_KEY)


def _text(path: Path, key: str) -> str | None:
    with opened(path) as picture:
        value = picture.info.get(key)
    return str(value) if isinstance(value, str) else None
