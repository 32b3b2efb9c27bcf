"""Where a picture goes and how large it gets: sizes and places alone, no pixels.

    crop, size = fitted((800, 600), width=300, height=300, fit="cover")
    x, y = anchored("bottom", room=(1200, 630), size=size)

Sizes are (width, height), places (x, y), in pixels.
"""

import math
from dataclasses import dataclass
from typing import Any

from layerdiffuse_mcp.api.layers import ANCHORS, MAX_SIDE, LayerOptions
from layerdiffuse_mcp.images.alpha import Box

Size = tuple[int, int]
CONTAIN, COVER, STRETCH = "contain", "cover", "stretch"


@dataclass(frozen=True)
class Rectangle:
    """Part of a canvas; it may lie partly or wholly outside."""

    x: int
    y: int
    width: int
    height: int

    @property
    def pixels(self) -> int:
        """How many there are."""
        return self.width * self.height

    @property
    def box(self) -> Box:
        """The same as left, top, right, bottom."""
        return self.x, self.y, self.x + self.width, self.y + self.height

    def is_left_by(self, other: "Rectangle") -> bool:
        """Whether another lies on it in part, and in part beyond it."""
        left, top, right, bottom = self.box
        first, above, last, below = other.box
        meets = first < right and last > left and above < bottom and below > top
        return meets and (first < left or above < top or last > right or below > bottom)


def fitted(
    size: Size, width: int | None = None, height: int | None = None, fit: str = CONTAIN, scale: float = 1.0
) -> tuple[Box, Size]:
    """The part of a picture that is used, and the size that this part gets.

    With one of `width` and `height` the other follows the proportions; with both "contain" stays within them, "cover"
    fills them and crops what stands over on both sides alike, "stretch" distorts; with neither `scale` counts.
    """
    own_width, own_height = size
    whole: Box = (0, 0, own_width, own_height)
    if width is None and height is None:
        return whole, _times(size, scale)
    ratios = [wanted / own for wanted, own in ((width, own_width), (height, own_height)) if wanted is not None]
    if width is None or height is None:
        across, down = _times(size, ratios[0])
        return whole, (width or across, height or down)
    if fit == STRETCH:
        return whole, (width, height)
    if fit == CONTAIN:
        across, down = _times(size, min(ratios))
        return whole, (min(across, width), min(down, height))
    ratio = max(ratios)
    used = min(own_width, max(1, round(width / ratio))), min(own_height, max(1, round(height / ratio)))
    left, top = (own_width - used[0]) // 2, (own_height - used[1]) // 2
    return (left, top, left + used[0], top + used[1]), (width, height)


def turned_size(size: Size, degrees: float) -> Size:
    """The upright box around a picture that was turned about its centre."""
    if degrees % 90 == 0:
        return size if degrees % 180 == 0 else (size[1], size[0])
    across, down = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    width, height = size
    return (math.ceil(width * across + height * down - 1e-6), math.ceil(width * down + height * across - 1e-6))


def anchored(anchor: str, room: Size, size: Size, offset: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """Where a picture of `size` begins that lies against a side or corner of `room`, or in its middle."""
    shares = ANCHORS[anchor]
    x, y = (math.floor((whole - own) * share) for whole, own, share in zip(room, size, shares, strict=True))
    return x + offset[0], y + offset[1]


@dataclass(frozen=True)
class Shape:
    """What becomes of a picture's size: the part of it that is used, that part's size, and its size once turned."""

    crop: Box
    resized: Size
    turned: Size

    @classmethod
    def of(cls, size: Size, layer: LayerOptions) -> "Shape":
        """The shape of a picture of `size` as a layer."""
        crop, resized = fitted(size, layer.width, layer.height, layer.fit or CONTAIN, layer.scale or 1.0)
        return cls(crop, resized, turned_size(resized, layer.rotate or 0.0))

    def reach(self, layer: LayerOptions) -> Rectangle:
        """Where it lies on a canvas whose size is not known: what is anchored takes its own size."""
        return Rectangle(layer.x or 0, layer.y or 0, *self.turned)

    def placed(self, layer: LayerOptions, canvas: Size) -> Rectangle:
        """Where it lies on a canvas."""
        if layer.anchor is None:
            return self.reach(layer)
        return Rectangle(*anchored(layer.anchor, canvas, self.turned, layer.offset or (0, 0)), *self.turned)


def where_it_lies(layer: LayerOptions, place: Rectangle, canvas: Size) -> dict[str, Any]:
    """The fields of a layer that put it at a place of a canvas, by its anchor if it has one.

    What lies farther off than fields can say is put as far as they can, where it is seen no more either.
    """
    x, y = (0, 0) if layer.anchor is None else anchored(layer.anchor, canvas, (place.width, place.height))
    x, y = (max(-MAX_SIDE, min(far, MAX_SIDE)) for far in (place.x - x, place.y - y))
    return {"x": x, "y": y} if layer.anchor is None else {"offset": (x, y)}


def _times(size: Size, factor: float) -> Size:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
