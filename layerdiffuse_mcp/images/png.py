"""PNG files that carry the recipe they were made from; and the same in a packet of XMP, for WebP.

    data = png_bytes(rgba, recipe=request_as_dict, parameters=infotext)
    read_recipe(path)       # the same dict, next year too
    with_id(data, "job-863032aa-1")     # the same picture, which says by what id it is known

The recipe is JSON in an iTXt chunk `layerdiffuse`; `parameters` is the line that A1111 and its relatives write and
read. Both stand before the pixels, so reading them decodes nothing. Whatever a file holds, what is read from it can be
said in JSON: text without lone surrogates, finite numbers, at most MAX_DEPTH tables deep.
"""

import html
import io
import json
import math
import re
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast
from xml.sax.saxutils import escape

from PIL import Image, PngImagePlugin

from layerdiffuse_mcp.errors import ImageError
from layerdiffuse_mcp.images.alpha import Bytes
from layerdiffuse_mcp.images.files import name_of
from layerdiffuse_mcp.images.read import MAX_PIXELS, opened
from layerdiffuse_mcp.wording import valid_text

RECIPE_KEY = "layerdiffuse"
LAYERS_KEY = "layerdiffuse-layers"
"""Of a composition's record, see `images.composition`."""
PARAMETERS_KEY = "parameters"
ID_KEY = "layerdiffuse-id"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER_END = 33
"""Bytes of a PNG's signature and its first chunk, which says its size."""
MAX_RECIPE = 1_000_000
"""Characters of a recipe; the longest that is written, of the longest prompts, has a fifth of that."""
MAX_DEPTH = 20


def png_bytes(
    picture: Bytes,
    *,
    recipe: dict[str, Any] | None = None,
    parameters: str | None = None,
    layers: str | None = None,
) -> bytes:
    """A PNG file of `picture` (H, W, 4 or 3), uint8, straight alpha; the colour below transparent pixels is kept."""
    text = PngImagePlugin.PngInfo()
    for key, said in (_texts(recipe, parameters) | ({LAYERS_KEY: layers} if layers is not None else {})).items():
        text.add_itxt(key, said)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", pnginfo=text, compress_level=6)
    return buffer.getvalue()


def xmp_of(recipe: dict[str, Any] | None, parameters: str | None) -> bytes:
    """The same two texts as an XMP packet, for formats that hold one; empty without either."""
    texts = _texts(recipe, parameters)
    if not texts:
        return b""
    marks = {'"': "&quot;", "\n": "&#10;", "\r": "&#13;", "\t": "&#9;"}
    said = " ".join(f'layerdiffuse:{key}="{escape(text, marks)}"' for key, text in texts.items())
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about="" xmlns:layerdiffuse="urn:layerdiffuse-mcp" {said}/></rdf:RDF></x:xmpmeta>'
    ).encode()


def _texts(recipe: dict[str, Any] | None, parameters: str | None) -> dict[str, str]:
    texts: dict[str, str] = {}
    if recipe is not None:
        texts[RECIPE_KEY] = json.dumps(_sayable(recipe), ensure_ascii=False, allow_nan=False)
    if parameters is not None:
        texts[PARAMETERS_KEY] = valid_text(parameters)
    return texts


def with_id(data: bytes, picture_id: str) -> bytes:
    """A PNG file's content with the id of the picture in it, in ASCII, before all else that it says; others stay."""
    if not data.startswith(SIGNATURE):
        return data
    body = ID_KEY.encode() + b"\0" + picture_id.encode("ascii")
    chunk = struct.pack(">I", len(body)) + b"tEXt" + body + struct.pack(">I", zlib.crc32(b"tEXt" + body))
    return data if data.startswith(chunk, HEADER_END) else data[:HEADER_END] + chunk + data[HEADER_END:]


def read_id(source: Path | BinaryIO, max_pixels: int = MAX_PIXELS) -> str | None:
    """The id that `with_id` put into a picture; None if it has none. Raises as `read_parameters`."""
    return embedded_text(source, ID_KEY, max_pixels)


def read_recipe(source: Path | BinaryIO, max_pixels: int = MAX_PIXELS) -> dict[str, Any] | None:
    """The recipe inside a picture that we made; None if it has none.

    Raises:
        ImageError: not a picture, one of more than `max_pixels`, or its recipe is damaged.
    """
    text = embedded_text(source, RECIPE_KEY, max_pixels)
    if text is None:
        return None
    try:
        if len(text) > MAX_RECIPE:
            raise ValueError(f"it has {len(text)} characters, and at most {MAX_RECIPE} are read")
        recipe = _sayable(json.loads(text))
        if not isinstance(recipe, dict):
            raise ValueError("no table of settings")
    except (ValueError, RecursionError) as error:
        why = "too deep" if isinstance(error, RecursionError) else error
        raise ImageError(f"{name_of(source)}: the recipe inside is damaged ({why}).") from error
    return cast(dict[str, Any], recipe)


def read_parameters(source: Path | BinaryIO, max_pixels: int = MAX_PIXELS) -> str | None:
    """The A1111 `parameters` text inside a picture; None if it has none.

    Raises:
        ImageError: not a picture, or one of more than `max_pixels`.
    """
    text = embedded_text(source, PARAMETERS_KEY, max_pixels)
    return None if text is None else valid_text(text)


def embedded_text(source: Path | BinaryIO, key: str, max_pixels: int = MAX_PIXELS) -> str | None:
    """The text that a picture holds under a key; None if it has none. Raises ImageError as `opened` does."""
    with opened(source, max_pixels) as picture:
        value, packet = picture.info.get(key), picture.info.get("xmp")
    if isinstance(packet, bytes):
        found = re.search(rf'layerdiffuse:{key}="([^"]*)"', packet.decode("utf-8", "replace"))
        return html.unescape(found[1]) if found else None
    return str(value) if isinstance(value, str) else None


def _sayable(value: Any, depth: int = 0) -> Any:
    """A JSON value with valid text; ValueError for one that is too deep or holds a number that is not finite."""
    if depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} tables deep")
    match value:
        case str():
            return valid_text(value)
        case float() if not math.isfinite(value):
            raise ValueError("a number that is not finite")
        case dict():
            items = cast(dict[Any, Any], value).items()
            return {valid_text(str(name)): _sayable(held, depth + 1) for name, held in items}
        case list() | tuple():
            return [_sayable(held, depth + 1) for held in cast(list[Any], value)]
        case _:
            return value
