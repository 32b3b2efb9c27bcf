"""What was drawn at one size, fitted to another: the pictures of a result and the layers that fill only a part of it.

    pixels, box = fitted(layer.pixels, layer.box, (176, 96), (1200, 630), "contain")

Pictures are (H, W, 4) with straight alpha or (H, W, 3), uint8. Resampling weights colour by alpha; what is left empty
is transparent, or goes on as the edge of an opaque picture does. Takes the result twice, beside `transform.resampled`.
"""

import cv2
import numpy as np
from PIL import Image

from layerdiffuse_mcp.api.sizes import Size, whole_box
from layerdiffuse_mcp.images.alpha import Box, Bytes
from layerdiffuse_mcp.images.transform import resampled


def fitted(pixels: Bytes, box: Box | None, drawn: Size, size: Size, how: str) -> tuple[Bytes, Box | None]:
    """A layer of a result of size `drawn`, and its place in the result of `size`; None where it fills that.

    Args:
        pixels: the layer, of the size of its `box`, or of `drawn` where that is None.
        how: one of `choices.FITS`; sizes are (width, height).
    """
    whole = whole_box(drawn, size, how)
    place = whole if box is None else _moved(box, drawn, whole)
    inside = _inside(place, size)
    left, top = inside[0] - place[0], inside[1] - place[1]
    width, height = inside[2] - inside[0], inside[3] - inside[1]
    scaled = _scaled(pixels, (place[2] - place[0], place[3] - place[1]))
    part = np.ascontiguousarray(scaled[top : top + height, left : left + width])
    return (part, inside) if box is not None else (_padded(part, inside, size), None)


def enlarged(pixels: Bytes, size: Size, padded: Size) -> Bytes:
    """A whole layer at `size`, continued at the right and the bottom to `padded`."""
    return _padded(_scaled(pixels, size), (0, 0, *size), padded)


def middle(pixels: Bytes, side: int) -> Bytes:
    """The middle square of a picture (H, W, 3), `side` pixels wide, by the filter that CLIP was trained with: Pillow's
    bicubic.
    """
    height, width = pixels.shape[:2]
    short = min(width, height)
    size = int(side * width / short), int(side * height / short)
    scaled = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return scaled[top : top + side, left : left + side]


def _moved(box: Box, drawn: Size, whole: Box) -> Box:
    """A box of the drawn picture, where it lies once that is in its place; a pixel large at least."""
    wide, high = (whole[2] - whole[0]) / drawn[0], (whole[3] - whole[1]) / drawn[1]
    left, top = whole[0] + round(box[0] * wide), whole[1] + round(box[1] * high)
    right, bottom = whole[0] + round(box[2] * wide), whole[1] + round(box[3] * high)
    return left, top, max(left + 1, right), max(top + 1, bottom)


def _inside(box: Box, size: Size) -> Box:
    """What of a box lies in the picture; a pixel at its edge at least."""
    left, top = (min(max(0, start), side - 1) for start, side in zip(box, size, strict=False))
    right, bottom = (
        max(start + 1, min(end, side)) for start, end, side in zip((left, top), box[2:], size, strict=True)
    )
    return left, top, right, bottom


def _scaled(pixels: Bytes, size: Size) -> Bytes:
    if pixels.shape[:2] == size[::-1]:
        return pixels
    if pixels.shape[2] == 4:
        return resampled(pixels, size)
    opaque = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    return resampled(np.concatenate([pixels, opaque], axis=2), size)[..., :3]


def _padded(pixels: Bytes, box: Box, size: Size) -> Bytes:
    left, top, right, bottom = box
    margins = top, size[1] - bottom, left, size[0] - right
    how = cv2.BORDER_CONSTANT if pixels.shape[2] == 4 else cv2.BORDER_REPLICATE
    return cv2.copyMakeBorder(pixels, *margins, how).astype(np.uint8, copy=False)
