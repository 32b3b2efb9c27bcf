"""Compositions as files: PNG and WebP (flattened), OpenRaster and PSD (with their layers, by name).

    data = export(composition, "psd")

OpenRaster is read by Krita, GIMP, MyPaint and others; PSD by nearly all.
"""

import io
import zipfile
from collections.abc import Callable
from xml.etree import ElementTree

import cv2
from PIL import Image

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.alpha import Bytes
from layerdiffuse_mcp.images.compose import Composition, flatten
from layerdiffuse_mcp.images.png import png_bytes
from layerdiffuse_mcp.images.psd import psd_bytes

THUMBNAIL_SIDE = 256


def export(composition: Composition, format: str) -> bytes:
    """A composition as a file of a format: PNG and WebP (lossless) flattened, `ora` and `psd` with every layer.

    Raises:
        InvalidRequest: no such format.
    """
    encode = FORMATS.get(format)
    if encode is None:
        raise InvalidRequest(f"{format}: layers can be exported as {', '.join(FORMATS)}.")
    return encode(composition)


def webp_bytes(picture: Bytes) -> bytes:
    """A lossless WebP file of `picture` (H, W, 4), uint8; the colour below transparency is kept."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", lossless=True, exact=True, quality=50)
    return buffer.getvalue()


def ora_bytes(composition: Composition) -> bytes:
    """An OpenRaster file with every layer. Source: the OpenRaster specification, baseline 0.0.6."""
    size = {"w": str(composition.width), "h": str(composition.height)}
    image = ElementTree.Element("image", {"version": "0.0.6", **size})
    stack = ElementTree.SubElement(image, "stack")
    flat = flatten(composition)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("mimetype", "image/openraster")  # the specification wants it first and stored
        for index, layer in reversed(list(enumerate(composition.layers))):  # and the topmost layer first
            source = f"data/layer{index:03}.png"
            ElementTree.SubElement(
                stack,
                "layer",
                {
                    "name": layer.name,
                    "src": source,
                    "x": str(layer.x),
                    "y": str(layer.y),
                    "opacity": f"{layer.opacity:.6g}",
                    "visibility": "visible" if layer.visible else "hidden",
                    "composite-op": "svg:src-over",
                },
            )
            archive.writestr(source, png_bytes(layer.image))
        archive.writestr("stack.xml", ElementTree.tostring(image, encoding="UTF-8", xml_declaration=True))
        archive.writestr("mergedimage.png", png_bytes(flat))
        archive.writestr("Thumbnails/thumbnail.png", png_bytes(_thumbnail(flat)))
    return buffer.getvalue()


def _thumbnail(picture: Bytes) -> Bytes:
    factor = min(1.0, THUMBNAIL_SIDE / max(picture.shape[:2]))
    width, height = (max(1, round(side * factor)) for side in picture.shape[1::-1])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA).astype(picture.dtype)


FORMATS: dict[str, Callable[[Composition], bytes]] = {
    "png": lambda composition: png_bytes(flatten(composition)),
    "webp": lambda composition: webp_bytes(flatten(composition)),
    "ora": ora_bytes,
    "psd": psd_bytes,
}
