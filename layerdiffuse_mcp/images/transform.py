"""A layer's picture made ready for the canvas: cleaned, tinted, fitted, mirrored, turned; and the shadow it throws.

    ready = transformed(rgba, layer, Shape.of((width, height), layer))
    shade, margin = shadow_of(ready, Shadow(blur=12))

Pictures are (H, W, 4), uint8, straight alpha; resampling weights colour by alpha, so that no hidden colour bleeds in.
Beyond its result, resampling takes 4 bytes a pixel of the picture and 8 a pixel of the result, a shadow 9 of its own.
"""

import math
from collections.abc import Iterable

import cv2
import numpy as np

from layerdiffuse_mcp.api.layers import LayerOptions, Shadow
from layerdiffuse_mcp.images.alpha import Bytes, Floats, defringe, tiles, to_bytes, to_float
from layerdiffuse_mcp.images.colour import colour_of
from layerdiffuse_mcp.images.layout import Shape, Size, turned_size
from layerdiffuse_mcp.images.resize import resized_channels, weighted_channels
from layerdiffuse_mcp.images.tasks import Colour

LUMA = np.array([0.3, 0.59, 0.11], np.float32)
NO_TINT = "none"
STEPS = {"none": (1, 1), "horizontal": (1, -1), "vertical": (-1, 1), "both": (-1, -1)}
"""By how a layer is flipped: the order in which its rows and columns are read."""
DEVIATIONS = 3
"""Standard deviations at which a blur has ended."""


def transformed(rgba: Bytes, layer: LayerOptions, shape: Shape) -> Bytes:
    """All that a layer's fields do to its picture; `rgba` may be changed in place and belong to the result."""
    left, top, right, bottom = shape.crop
    picture = rgba[top:bottom, left:right]
    if layer.defringe:
        defringe(picture)
    if layer.tint and layer.tint != NO_TINT:
        tint(picture, colour_of(layer.tint, "tint"))
    picture = resampled(picture, shape.resized)
    down, across = STEPS[layer.flip or "none"]
    return turned(picture[::down, ::across], layer.rotate or 0.0)


def resampled(rgba: Bytes, size: Size) -> Bytes:
    """`rgba` at `size` (width, height): by area where it gets smaller, else bicubic; itself where it has the size."""
    width, height = size
    if (height, width) == rgba.shape[:2]:
        return rgba
    smaller = height * width < rgba.shape[0] * rgba.shape[1]
    image = np.empty((height, width, 4), np.uint8)
    _assemble(image, resized_channels(rgba, width, height, cv2.INTER_AREA if smaller else cv2.INTER_CUBIC))
    return image


def turned(rgba: Bytes, degrees: float) -> Bytes:
    """`rgba` turned clockwise about its centre, in a box that holds all of it; exact for quarter turns."""
    if degrees % 90 == 0:
        return np.rot90(rgba, -int(degrees // 90))
    height, width = rgba.shape[:2]
    wide, high = turned_size((width, height), degrees)
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1.0)
    matrix[:, 2] += ((wide - width) / 2, (high - height) / 2)
    image = np.empty((high, wide, 4), np.uint8)

    def change(plane: Floats) -> Floats:
        return cv2.warpAffine(plane, matrix, (wide, high), flags=cv2.INTER_CUBIC).astype(np.float32, copy=False)

    _assemble(image, weighted_channels(rgba, change))
    return image


def tint(rgba: Bytes, colour: Colour) -> None:
    """Give all of `rgba` the hue and saturation of a colour, in place; luminosity and alpha stay.

    Source: the blend mode "color" of W3C "Compositing and Blending Level 1", with the colour as its source.
    """
    source = np.array(colour, np.float32)
    for tile in tiles(*rgba.shape[:2]):
        part = rgba[tile]
        luminosity = to_float(part[..., :3]) @ LUMA
        shifted = source + (luminosity - source @ LUMA)[..., None]
        part[..., :3] = to_bytes(_clipped(shifted, luminosity[..., None]))


def shadow_of(rgba: Bytes, shadow: Shadow) -> tuple[Bytes, int]:
    """What a picture throws: its silhouette in the shadow's colour, grown and blurred, and the margin around it.

    The result is larger than the picture by `margin` on every side; opacity and place are left to the layer.
    """
    margin = shadow_margin(shadow)
    alpha = cv2.copyMakeBorder(
        np.ascontiguousarray(rgba[..., 3]), margin, margin, margin, margin, cv2.BORDER_CONSTANT, value=(0,)
    )
    square, cross = (cv2.getStructuringElement(shape, (3, 3)) for shape in (cv2.MORPH_RECT, cv2.MORPH_CROSS))
    for step in range(shadow.spread):  # by turns, which grows an octagon
        alpha = cv2.dilate(alpha, square if step % 2 else cross)
    if shadow.blur:
        soft = cv2.GaussianBlur(alpha.astype(np.float32), (0, 0), shadow.blur / 2, borderType=cv2.BORDER_CONSTANT)
        for tile in tiles(*soft.shape):
            alpha[tile] = np.rint(np.clip(soft[tile], 0, 255)).astype(np.uint8)
    image = np.empty((*alpha.shape, 4), np.uint8)
    image[..., :3] = to_bytes(np.array(colour_of(shadow.colour, "shadow colour"), np.float32))
    image[..., 3] = alpha
    return image, margin


def shadow_margin(shadow: Shadow) -> int:
    """Pixels by which a shadow is larger than its layer on every side."""
    return shadow.spread + math.ceil(DEVIATIONS * shadow.blur / 2)


def _assemble(image: Bytes, channels: Iterable[tuple[int, Floats]]) -> None:
    """Fill `image` with channels, alpha first, whose colour is weighted by alpha."""
    alpha: Floats | None = None
    for channel, plane in channels:
        np.clip(plane, 0, 1, out=plane)
        if alpha is None:
            alpha = plane
        else:
            np.divide(plane, alpha, out=plane, where=alpha > 0)
            np.copyto(plane, 0, where=alpha <= 0)
        for tile in tiles(*plane.shape):
            image[(*tile, channel)] = to_bytes(plane[tile])


def _clipped(colour: Floats, luminosity: Floats) -> Floats:
    """ClipColor of the same source: out-of-range colours drawn towards grey of the same luminosity."""
    low, high = colour.min(axis=-1, keepdims=True), colour.max(axis=-1, keepdims=True)
    colour = np.where(
        low < 0, luminosity + (colour - luminosity) * luminosity / np.maximum(luminosity - low, 1e-9), colour
    )
    return np.where(
        high > 1, luminosity + (colour - luminosity) * (1 - luminosity) / np.maximum(high - luminosity, 1e-9), colour
    )
