"""Compositions as files: PNG, WebP and JPEG (flattened), OpenRaster and PSD (with their layers, by name).

    data = export(composition, ".psd")

OpenRaster is read by Krita, GIMP, MyPaint and others; PSD by nearly all. The formats differ in one blend mode: `add` is
light on light in all but OpenRaster, whose svg:plus adds alpha as well (`in_format`).
"""

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
from PIL import Image

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.alpha import Bytes, composite, tiles
from layerdiffuse_mcp.images.blend import ADD, MODES, PLUS
from layerdiffuse_mcp.images.compose import Composition, Report, flatten, ignore
from layerdiffuse_mcp.images.composition import ENTRY
from layerdiffuse_mcp.images.png import png_bytes, xmp_of
from layerdiffuse_mcp.images.psd import MAX_SIDE, psd_bytes

THUMBNAIL_SIDE = 256
MAX_WEBP_SIDE = 16_383
JPEG_QUALITY = 92
WHITE = (1.0, 1.0, 1.0)
WEBP_OUT_OF_MEMORY = "encoding error 1"
"""How Pillow passes on libwebp's VP8_ENC_ERROR_OUT_OF_MEMORY."""


def export(composition: Composition, suffix: str) -> bytes:
    """A composition as a file: PNG, WebP (lossless) and JPEG flattened, `.ora` and `.psd` with its layers.

    Raises:
        InvalidRequest: no such format, or it has no room for a canvas of this size.
    """
    if suffix not in FORMATS:
        raise InvalidRequest(f"{suffix}: layers can be exported as {', '.join(FORMATS)}.")
    composition = in_format(composition, suffix)
    return encoded(composition, flatten(composition), suffix)


def in_format(composition: Composition, suffix: str) -> Composition:
    """A composition with its blend modes as a format defines them."""
    if suffix != ".ora":
        return composition
    layers = (replace(layer, blend=PLUS) if layer.blend == ADD else layer for layer in composition.layers)
    return replace(composition, layers=tuple(layers))


def encoded(
    composition: Composition, flat: Bytes, suffix: str, report: Report = ignore, record: str | None = None
) -> bytes:
    """The file that `export` makes of a composition `in_format` and what it flattens to; its record inside, if it can.

    Takes at most 9 bytes a pixel of the canvas and of the layers beyond these; WebP, whose encoder is libwebp's, up to
    40. Errors as `check_side` and `psd_bytes`.
    """
    check_side(suffix, max(flat.shape[:2]))
    return FORMATS[suffix.lower()](composition, flat, report, record)


def check_side(suffix: str, side: int) -> None:
    """Make sure that a format has room for pictures with a side of so many pixels.

    Raises:
        InvalidRequest: it has not.
    """
    limit = MAX_SIDES.get(suffix.lower())
    if limit is not None and side > limit:
        raise InvalidRequest(
            f"{suffix} files allow {limit} pixels a side, and this canvas has {side}. Export .png or .ora instead."
        )


def picture_bytes(
    picture: Bytes, format: str, *, recipe: dict[str, Any] | None = None, parameters: str | None = None
) -> bytes:
    """A "png" or "webp" file of `picture` (H, W, 4 or 3), uint8, with what it says of itself."""
    made = png_bytes if format == "png" else webp_bytes
    return made(picture, recipe=recipe, parameters=parameters)


def webp_bytes(picture: Bytes, *, recipe: dict[str, Any] | None = None, parameters: str | None = None) -> bytes:
    """A lossless WebP file of `picture` (H, W, 4 or 3), uint8; the colour below transparency is kept.

    `recipe` and `parameters` as of `png_bytes`; `png.read_recipe` and `read_parameters` find them here too.

    Raises:
        MemoryError: libwebp found too little memory.
    """
    buffer = io.BytesIO()
    try:
        said = xmp_of(recipe, parameters)
        more: dict[str, Any] = {"xmp": said} if said else {}
        Image.fromarray(picture).save(buffer, "WEBP", lossless=True, exact=True, quality=50, **more)
    except ValueError as error:
        if str(error) == WEBP_OUT_OF_MEMORY:
            raise MemoryError(str(error)) from error
        raise
    return buffer.getvalue()


def on_white(flat: Bytes) -> Bytes:
    """`flat` (H, W, 4), uint8, with white behind what shows through: as a JPEG shows it; opaque."""
    opaque = np.full_like(flat, 255)
    for tile in tiles(*flat.shape[:2]):
        opaque[tile][..., :3] = composite(flat[tile], WHITE)
    return opaque


def jpeg_bytes(flat: Bytes) -> bytes:
    """A JPEG file of an opaque picture (H, W, 4), uint8."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(flat[..., :3]))
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def ora_bytes(
    composition: Composition, flat: Bytes | None = None, report: Report = ignore, record: str | None = None
) -> bytes:
    """An OpenRaster file with every layer. Source: the OpenRaster specification, baseline 0.0.6."""
    composition = in_format(composition, ".ora")
    size = {"w": str(composition.width), "h": str(composition.height)}
    image = ElementTree.Element("image", {"version": "0.0.6", **size})
    stack = ElementTree.SubElement(image, "stack")
    flat = flatten(composition) if flat is None else flat
    count = len(composition.layers)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("mimetype", "image/openraster")  # the specification wants it first and stored
        for index, layer in reversed(list(enumerate(composition.layers))):  # and the topmost layer first
            source = f"data/layer{index:03}.png"
            ElementTree.SubElement(
                stack,
                "layer",
                {
                    "name": layer.label,
                    "src": source,
                    "x": str(layer.x),
                    "y": str(layer.y),
                    "opacity": f"{layer.opacity:.6g}",
                    "visibility": "visible" if layer.visible else "hidden",
                    "composite-op": MODES[ADD if layer.blend == PLUS else layer.blend].ora,
                },
            )
            archive.writestr(source, png_bytes(layer.image))
            report((count - index) / (count + 1))
        archive.writestr("stack.xml", ElementTree.tostring(image, encoding="UTF-8", xml_declaration=True))
        archive.writestr("mergedimage.png", png_bytes(flat))
        if record is not None:
            archive.writestr(ENTRY, record)
        archive.writestr("Thumbnails/thumbnail.png", png_bytes(_thumbnail(flat)))
    return buffer.getvalue()


def _thumbnail(picture: Bytes) -> Bytes:
    factor = min(1.0, THUMBNAIL_SIDE / max(picture.shape[:2]))
    width, height = (max(1, round(side * factor)) for side in picture.shape[1::-1])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA).astype(picture.dtype)


FORMATS: dict[str, Callable[[Composition, Bytes, Report, str | None], bytes]] = {
    ".png": lambda composition, flat, report, record: png_bytes(flat, layers=record),
    ".webp": lambda composition, flat, report, record: webp_bytes(flat),
    ".jpg": lambda composition, flat, report, record: jpeg_bytes(on_white(flat)),
    ".ora": ora_bytes,
    ".psd": lambda composition, flat, report, record: psd_bytes(composition, report),
}
MAX_SIDES = {".webp": MAX_WEBP_SIDE, ".psd": MAX_SIDE}
