"""Putting layers together: place, scale, fade, trim, pad, and flatten with the exact operator over.

    composition = arrange([Layer(background, "background"), Layer(apple, "apple", x=40, scale=0.5)])
    rgba = flatten(composition)

The first layer is the lowest. All pictures are uint8 (H, W, 4) with straight alpha; sums are made in float32 and
rounded once, at the end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.alpha import Bytes, Colour, Floats, over, to_bytes, to_float

MAX_CANVAS_SIDE = 30_000  # what PSD allows
MAX_CANVAS_PIXELS = 64_000_000
BACKGROUND_NAME = "background"


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


@dataclass(frozen=True)
class Composition:
    """Layers on a canvas of `width` x `height` pixels, the lowest first, all at scale 1."""

    width: int
    height: int
    layers: tuple[Layer, ...]


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
        InvalidRequest: no layers, a scale or opacity out of range, a canvas too large, or nothing visible to trim to.
    """
    if not layers:
        raise InvalidRequest("There are no layers to put together: give at least one.")
    placed = [_scaled(layer) for layer in layers]
    picture = None if isinstance(background, tuple) else background
    if canvas is None:
        shown = [(picture.shape[1], picture.shape[0])] if picture is not None else []
        reach = shown or [(layer.x + layer.image.shape[1], layer.y + layer.image.shape[0]) for layer in placed]
        canvas = (max(1, *(x for x, _ in reach), 1), max(1, *(y for _, y in reach), 1))
    left, top, right, bottom = _visible_box(placed, *canvas) if trim else (0, 0, *canvas)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    if min(width, height) < 1 or max(width, height) > MAX_CANVAS_SIDE or width * height > MAX_CANVAS_PIXELS:
        raise InvalidRequest(
            f"A canvas of {width}x{height} pixels is not possible: 1 to {MAX_CANVAS_SIDE} a side and at most "
            f"{MAX_CANVAS_PIXELS // 1_000_000} million in all. Give a smaller canvas, scale or pad."
        )
    moved = [replace(layer, x=layer.x - left + pad, y=layer.y - top + pad) for layer in placed]
    if picture is not None:
        moved.insert(0, Layer(picture, BACKGROUND_NAME, pad - left, pad - top))
    elif isinstance(background, tuple):
        filled = np.full((height, width, 4), (*background, 1), np.float32)
        moved.insert(0, Layer(to_bytes(filled), BACKGROUND_NAME))
    return Composition(width, height, tuple(moved))


def flatten(composition: Composition) -> Bytes:
    """The visible layers of a composition as one picture (height, width, 4), straight alpha."""
    return to_bytes(flatten_exact(composition))


def flatten_exact(composition: Composition) -> Floats:
    """As `flatten`, but float32, 0 to 1, before rounding."""
    result = np.zeros((composition.height, composition.width, 4), np.float32)
    for layer in composition.layers:
        if not layer.visible:
            continue
        height, width = layer.image.shape[:2]
        left, top = max(layer.x, 0), max(layer.y, 0)
        right, bottom = min(layer.x + width, composition.width), min(layer.y + height, composition.height)
        if left >= right or top >= bottom:
            continue
        part = to_float(layer.image[top - layer.y : bottom - layer.y, left - layer.x : right - layer.x])
        part[..., 3] *= layer.opacity
        result[top:bottom, left:right] = over(part, result[top:bottom, left:right])
    return result


def compose(
    layers: Sequence[Layer], canvas: tuple[int, int] | None = None, background: Bytes | Colour | None = None
) -> Bytes:
    """Arrange and flatten in one go; arguments and errors as `arrange`."""
    return flatten(arrange(layers, canvas, background))


def _scaled(layer: Layer) -> Layer:
    """The layer with its picture resampled to scale 1, colour weighted by alpha."""
    if not (math.isfinite(layer.scale) and 0 < layer.scale <= 64):
        raise InvalidRequest(f"Layer {layer.name}: scale is {layer.scale}, allowed is more than 0 up to 64.")
    if not 0 <= layer.opacity <= 1:
        raise InvalidRequest(f"Layer {layer.name}: opacity is {layer.opacity}, allowed is 0 to 1.")
    height, width = (max(1, round(side * layer.scale)) for side in layer.image.shape[:2])
    if (height, width) == layer.image.shape[:2]:
        return replace(layer, scale=1.0)
    if max(height, width) > MAX_CANVAS_SIDE or height * width > MAX_CANVAS_PIXELS:
        raise InvalidRequest(f"Layer {layer.name} would have {width}x{height} pixels: give a smaller scale.")
    scaled = to_float(layer.image)
    premultiplied = np.concatenate([scaled[..., :3] * scaled[..., 3:], scaled[..., 3:]], axis=-1)
    how = cv2.INTER_AREA if layer.scale < 1 else cv2.INTER_CUBIC
    resized = cv2.resize(premultiplied, (width, height), interpolation=how).astype(np.float32).clip(0, 1)
    alpha = resized[..., 3:]
    colour = np.divide(resized[..., :3], alpha, out=np.zeros_like(resized[..., :3]), where=alpha > 0)
    return replace(layer, image=to_bytes(np.concatenate([colour, alpha], axis=-1)), scale=1.0)


def _visible_box(layers: Sequence[Layer], width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom (exclusive) of all pixels on the canvas that are not wholly transparent."""
    seen = flatten(Composition(width, height, tuple(layers)))[..., 3] > 0
    if not seen.any():
        raise InvalidRequest("Nothing is visible on the canvas, so there is nothing to trim to.")
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
