"""Putting layers together: place, scale, fade, trim, pad, and flatten with the exact operator over.

    composition = arrange([Layer(background, "background"), Layer(apple, "apple", x=40, scale=0.5)])
    rgba = flatten(composition)

The first layer is the lowest. All pictures are uint8 (H, W, 4) with straight alpha; sums are made in float32 and
rounded once, at the end. Sizes are checked before anything is allocated, and floats are held for a band of rows only:
beyond its layers a composition takes 4 bytes a pixel of the canvas, and a layer that is scaled 4 a pixel of its picture
and 12 a pixel of the result while it is.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.alpha import Box, Bytes, Floats, over, tiles, to_bytes, to_float, visible_box
from layerdiffuse_mcp.images.resize import resized_channels
from layerdiffuse_mcp.images.tasks import Colour

MAX_CANVAS_SIDE = 30_000  # what PSD allows
MAX_CANVAS_PIXELS = 64_000_000
MAX_SCALE = 64
BACKGROUND_NAME = "background"
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Characters that XML, or any encoding of Unicode, has no room for."""

Report = Callable[[float], None]
"""Hears how much is done, 0 to 1."""


def ignore(_: float) -> None:
    """A report that nobody reads."""


@dataclass(frozen=True)
class Layer:
    """A picture and where it goes.

    `image` is (H, W, 4), uint8; `x`, `y` are the canvas coordinates of its top left corner, in pixels and possibly
    negative; `scale` is applied about that corner; `opacity` is 0 to 1.
    """

    image: Bytes
    name: str
    x: int = 0
    y: int = 0
    scale: float = 1.0
    opacity: float = 1.0
    visible: bool = True

    @property
    def label(self) -> str:
        """The name without the characters that a document cannot hold."""
        return UNPRINTABLE.sub("\ufffd", self.name)

    @property
    def extent(self) -> "Extent":
        """Where the picture lies once it is scaled."""
        height, width = self.image.shape[:2]
        return Extent.of(self.name, (width, height), self.x, self.y, self.scale, self.opacity)


@dataclass(frozen=True)
class Extent:
    """Where a layer lies on the canvas, in pixels: all that has to be known before its picture is read."""

    x: int
    y: int
    width: int
    height: int

    @classmethod
    def of(cls, name: str, size: tuple[int, int], x: int, y: int, scale: float, opacity: float) -> "Extent":
        """The extent of a picture of `size` (width, height).

        Raises:
            InvalidRequest: scale or opacity is out of range, or the scaled picture too large.
        """
        if not (math.isfinite(scale) and 0 < scale <= MAX_SCALE):
            raise InvalidRequest(f"Layer {name}: scale is {scale}, allowed is more than 0 up to {MAX_SCALE}.")
        if not 0 <= opacity <= 1:
            raise InvalidRequest(f"Layer {name}: opacity is {opacity}, allowed is 0 to 1.")
        width, height = (max(1, round(side * scale)) for side in size)
        if (width, height) != size and (max(width, height) > MAX_CANVAS_SIDE or width * height > MAX_CANVAS_PIXELS):
            raise InvalidRequest(f"Layer {name} would have {width}x{height} pixels: give a smaller scale.")
        return cls(x, y, width, height)


@dataclass(frozen=True)
class Composition:
    """Layers on a canvas of `width` x `height` pixels, the lowest first, all at scale 1."""

    width: int
    height: int
    layers: tuple[Layer, ...]


def canvas_size(
    extents: Sequence[Extent],
    canvas: tuple[int, int] | None = None,
    below: tuple[int, int] | None = None,
    *,
    trim: bool = False,
    pad: int = 0,
) -> tuple[int, int]:
    """Width and height of the canvas before it is trimmed and padded; arguments and errors as `arrange`.

    `below` is the size of the background, where that is a picture. Needs no picture, so it comes before reading any.
    """
    if not extents:
        raise InvalidRequest("There are no layers to put together: give at least one.")
    if trim and canvas is not None:
        raise InvalidRequest(
            "trim cuts the canvas down to what is visible, so a canvas of a given width and height cannot be kept. "
            "Give either trim or width and height."
        )
    reach = (max(1, *(e.x + e.width for e in extents), 1), max(1, *(e.y + e.height for e in extents), 1))
    size = canvas or below or reach
    if not trim:
        _check_canvas(size[0] + 2 * pad, size[1] + 2 * pad)
    return size


def arrange(
    layers: Sequence[Layer],
    canvas: tuple[int, int] | None = None,
    background: Bytes | Colour | None = None,
    *,
    trim: bool = False,
    pad: int = 0,
) -> Composition:
    """Scale and place layers on a canvas.

    Args:
        layers: the lowest first.
        canvas: (width, height); by default from (0, 0) as far as the background or else the layers reach.
        background: what lies below all layers: a colour (red, green, blue), 0 to 1, or a picture (H, W, 4), uint8.
        trim: cut the canvas down to what is visible of the layers (the background does not count).
        pad: pixels added on every side, after trimming.

    Raises:
        InvalidRequest: no layers, a scale or opacity out of range, a canvas too large, one that is given and trimmed
            too, or nothing visible to trim to.
    """
    picture = None if isinstance(background, tuple) else background
    below = None if picture is None else (picture.shape[1], picture.shape[0])
    size = canvas_size([layer.extent for layer in layers], canvas, below, trim=trim, pad=pad)
    placed = [_scaled(layer) for layer in layers]
    left, top, right, bottom = _visible_part(placed, *size) if trim else (0, 0, *size)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    _check_canvas(width, height)
    moved = [replace(layer, x=layer.x - left + pad, y=layer.y - top + pad) for layer in placed]
    if picture is not None:
        moved.insert(0, Layer(picture, BACKGROUND_NAME, pad - left, pad - top))
    elif isinstance(background, tuple):
        pixel = to_bytes(np.array((*background, 1), np.float32))
        moved.insert(0, Layer(np.broadcast_to(pixel, (height, width, 4)), BACKGROUND_NAME))
    return Composition(width, height, tuple(moved))


def flatten(composition: Composition, report: Report = ignore) -> Bytes:
    """The visible layers of a composition as one picture (height, width, 4), straight alpha."""
    flat = np.empty((composition.height, composition.width, 4), np.uint8)
    for rows, band in flattened(composition):
        flat[rows] = to_bytes(band)
        report(rows.stop / composition.height)
    return flat


def flattened(composition: Composition) -> Iterator[tuple[slice, Floats]]:
    """As `flatten`, but band by band, before rounding: the rows of each and its pixels, float32, 0 to 1."""
    for rows, _ in tiles(composition.height, min(composition.width, MAX_CANVAS_SIDE)):
        band = np.zeros((rows.stop - rows.start, composition.width, 4), np.float32)
        for layer in composition.layers:
            height, width = layer.image.shape[:2]
            left, right = max(layer.x, 0), min(layer.x + width, composition.width)
            top, bottom = max(layer.y, rows.start), min(layer.y + height, rows.stop)
            if not layer.visible or left >= right or top >= bottom:
                continue
            part = to_float(layer.image[top - layer.y : bottom - layer.y, left - layer.x : right - layer.x])
            part[..., 3] *= layer.opacity
            place = np.s_[top - rows.start : bottom - rows.start, left:right]
            band[place] = over(part, band[place])
        yield rows, band


def compose(
    layers: Sequence[Layer], canvas: tuple[int, int] | None = None, background: Bytes | Colour | None = None
) -> Bytes:
    """Arrange and flatten in one go; arguments and errors as `arrange`."""
    return flatten(arrange(layers, canvas, background))


def _check_canvas(width: int, height: int) -> None:
    if min(width, height) < 1 or max(width, height) > MAX_CANVAS_SIDE or width * height > MAX_CANVAS_PIXELS:
        raise InvalidRequest(
            f"A canvas of {width}x{height} pixels is not possible: 1 to {MAX_CANVAS_SIDE} a side and at most "
            f"{MAX_CANVAS_PIXELS // 1_000_000} million in all. Give a smaller canvas, scale or pad."
        )


def _scaled(layer: Layer) -> Layer:
    """The layer with its picture resampled to scale 1, colour weighted by alpha."""
    extent = layer.extent
    if (extent.height, extent.width) == layer.image.shape[:2]:
        return replace(layer, scale=1.0)
    how = cv2.INTER_AREA if layer.scale < 1 else cv2.INTER_CUBIC
    image = np.empty((extent.height, extent.width, 4), np.uint8)
    alpha: Floats | None = None
    for channel, plane in resized_channels(layer.image, extent.width, extent.height, how):
        np.clip(plane, 0, 1, out=plane)
        if alpha is None:
            alpha = plane
        else:
            np.divide(plane, alpha, out=plane, where=alpha > 0)
            np.copyto(plane, 0, where=alpha <= 0)
        for tile in tiles(*plane.shape):
            image[(*tile, channel)] = to_bytes(plane[tile])
    return replace(layer, image=image, scale=1.0)


def _visible_part(layers: Sequence[Layer], width: int, height: int) -> Box:
    """The box of all pixels on the canvas that are not wholly transparent in some layer; none of the canvas is made."""
    boxes: list[Box] = []
    for layer in layers:
        left, top = max(layer.x, 0), max(layer.y, 0)
        alpha = layer.image[top - layer.y : max(top, height) - layer.y, left - layer.x : max(left, width) - layer.x, 3]
        box = visible_box(_is_seen(layer.opacity)[alpha]) if layer.visible else None
        if box is not None:
            boxes.append((box[0] + left, box[1] + top, box[2] + left, box[3] + top))
    if not boxes:
        raise InvalidRequest("Nothing is visible on the canvas, so there is nothing to trim to.")
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _is_seen(opacity: float) -> NDArray[np.bool_]:
    """For each alpha from 0 to 255, whether it is more than 0 after fading and rounding."""
    return to_bytes(to_float(np.arange(256, dtype=np.uint8)) * np.float32(opacity)) > 0
