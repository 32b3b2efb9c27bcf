"""Putting layers together: place, fade, blend, trim, pad, and flatten with the exact operator over.

    composition = arrange([Layer(background, "background"), Layer(glow, "glow", x=40, blend="screen")])
    rgba = flatten(composition)

The first layer is the lowest. All pictures are uint8 (H, W, 4) with straight alpha; sums are made in float32 and
rounded once, at the end. Sizes are checked before anything is allocated, and floats are held for a band of rows only:
beyond its layers a composition takes 4 bytes a pixel of the canvas. `images.transform` makes a layer's picture ready.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from layerdiffuse_mcp.api.layers import MAX_SIDE
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.alpha import (
    MAX_INVISIBLE,
    MIN_OPAQUE,
    PRACTICALLY_OPAQUE,
    Box,
    Bytes,
    Floats,
    tiles,
    to_bytes,
    to_float,
    visible_box,
)
from layerdiffuse_mcp.images.blend import NORMAL, blended
from layerdiffuse_mcp.images.layout import Rectangle, Size
from layerdiffuse_mcp.images.tasks import BACKGROUND, Colour

MAX_CANVAS_PIXELS = 64_000_000
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Characters that XML, or any encoding of Unicode, has no room for."""

CUT = 0.01
"""Share of a layer's visible pixels that may be cut off by the canvas without a word."""

Report = Callable[[float], None]
"""Hears how much is done, 0 to 1."""


def ignore(_: float) -> None:
    """A report that nobody reads."""


@dataclass(frozen=True)
class Layer:
    """A picture and where it goes.

    `image` is (H, W, 4), uint8; `x`, `y` are the canvas coordinates of its top left corner, in pixels and possibly
    negative; `opacity` is 0 to 1; `blend` a mode of `images.blend`. `thrown` is true of a shadow, which was no layer
    of the agent's.
    """

    image: Bytes
    name: str
    x: int = 0
    y: int = 0
    opacity: float = 1.0
    visible: bool = True
    blend: str = NORMAL
    thrown: bool = False

    @property
    def label(self) -> str:
        """The name without the characters that a document cannot hold."""
        return UNPRINTABLE.sub("\ufffd", self.name)

    @property
    def rectangle(self) -> Rectangle:
        """Where it lies on the canvas."""
        return Rectangle(self.x, self.y, self.image.shape[1], self.image.shape[0])

    def backs(self, box: Box) -> bool:
        """Whether nothing of a part of the canvas shows through it, but for a hole or rounded corners."""
        if not self.visible or self.opacity < 1 or around([box, self.rectangle.box]) != self.rectangle.box:
            return False
        alpha = self.image[_rows_and_columns(self, box)][..., 3]
        return bool(np.count_nonzero(alpha >= MIN_OPAQUE) >= PRACTICALLY_OPAQUE * alpha.size)


@dataclass(frozen=True)
class Composition:
    """Layers on a canvas of `width` x `height` pixels, the lowest first."""

    width: int
    height: int
    layers: tuple[Layer, ...]


def canvas_size(
    reach: Sequence[Rectangle],
    canvas: Size | None = None,
    below: Size | None = None,
    *,
    trim: bool = False,
    pad: int = 0,
) -> Size:
    """Width and height of the canvas before it is grown, trimmed and padded; arguments and errors as `arrange`.

    `reach` is where the layers lie, `below` the size of the background, where that is a picture. Needs no picture, so
    it comes before reading any.
    """
    if not reach:
        raise InvalidRequest("There are no layers to put together: give at least one.")
    if trim and canvas is not None:
        raise InvalidRequest(
            "trim cuts the canvas down to what is visible, so a canvas of a given size cannot be kept. "
            "Give either trim or size."
        )
    size = (max(1, *(r.x + r.width for r in reach), 1), max(1, *(r.y + r.height for r in reach), 1))
    size = canvas or below or size
    if not trim:
        _check_canvas(size[0] + 2 * pad, size[1] + 2 * pad)
    return size


def arrange(
    layers: Sequence[Layer],
    canvas: Size | None = None,
    background: Bytes | Colour | None = None,
    *,
    background_at: tuple[int, int] = (0, 0),
    room: Size | None = None,
    trim: bool = False,
    pad: int = 0,
) -> Composition:
    """Place layers on a canvas.

    Args:
        layers: the lowest first.
        canvas: (width, height); by default the background picture's, else `room`, and what lies beyond (`holding`).
        background: what lies below all layers: a colour (red, green, blue), 0 to 1, or a picture (H, W, 4), uint8.
        background_at: where the background picture begins.
        room: (width, height) of the canvas from (0, 0) that is grown; by default as far as the layers reach.
        trim: cut the canvas down to what is visible of the layers (the background does not count).
        pad: pixels added on every side, after trimming.

    Raises:
        InvalidRequest: no layers, an opacity out of range, a canvas too large, one that is given and trimmed too, or
            nothing visible to trim to.
    """
    for layer in layers:
        if not 0 <= layer.opacity <= 1:
            raise InvalidRequest(f"Layer {layer.name}: opacity is {layer.opacity}, allowed is 0 to 1.")
    picture = None if isinstance(background, tuple) else background
    below = None if picture is None else (picture.shape[1], picture.shape[0])
    reach = [layer.rectangle for layer in layers if not layer.thrown]
    size = room or canvas_size(reach, canvas, below, trim=trim, pad=pad)
    whole = (0, 0, *size) if canvas or below is None else Rectangle(*background_at, *below).box
    if trim:
        box = _visible_part(layers, None if below is None else whole)
        if box is None:
            raise InvalidRequest("Nothing is visible on the canvas, so there is nothing to trim to.")
    else:
        box = whole if canvas or below else holding(whole, layers)
    left, top, right, bottom = box
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    _check_canvas(width, height)
    moved = [replace(layer, x=layer.x - left + pad, y=layer.y - top + pad) for layer in layers]
    if picture is not None:
        moved.insert(0, Layer(picture, BACKGROUND, background_at[0] - left + pad, background_at[1] - top + pad))
    elif isinstance(background, tuple):
        pixel = to_bytes(np.array((*background, 1), np.float32))
        moved.insert(0, Layer(np.broadcast_to(pixel, (height, width, 4)), BACKGROUND))
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
    for rows, _ in tiles(composition.height, min(composition.width, MAX_SIDE)):
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
            band[place] = blended(part, band[place], layer.blend)
        yield rows, band


def compose(layers: Sequence[Layer], canvas: Size | None = None, background: Bytes | Colour | None = None) -> Bytes:
    """Arrange and flatten in one go; arguments and errors as `arrange`."""
    return flatten(arrange(layers, canvas, background))


def _check_canvas(width: int, height: int) -> None:
    if min(width, height) < 1 or max(width, height) > MAX_SIDE or width * height > MAX_CANVAS_PIXELS:
        raise InvalidRequest(
            f"A canvas of {width}x{height} pixels is not possible: 1 to {MAX_SIDE} a side and at most "
            f"{MAX_CANVAS_PIXELS // 1_000_000} million in all. Give a smaller canvas, scale or pad."
        )


def holding(box: Box, layers: Sequence[Layer]) -> Box:
    """A part of the canvas, grown until it holds all that is visible of some layers, the lowest first.

    A shadow falls on what lies below: where a layer there backs all that the layers fill, it grows nothing.
    """
    box = _grown(box, [layer for layer in layers if not layer.thrown])
    return _grown(box, [layer for layer in fallen_beyond(box, layers) if layer.thrown])


def fallen_beyond(box: Box, layers: Sequence[Layer]) -> Sequence[Layer]:
    """Of some layers, the lowest first, those below which none backs a part of the canvas: their shadows show there."""
    backing = (number for number, layer in enumerate(layers) if not layer.thrown and layer.backs(box))
    return layers[: next(backing, len(layers)) + 1]


def _grown(box: Box, layers: Sequence[Layer]) -> Box:
    seen = _visible_part(layers)
    return box if seen is None else around([box, seen])


def _share_outside(layer: Layer, width: int, height: int) -> float:
    """Of the visible pixels of a layer, how many lie outside a canvas; 0 where none is visible."""
    place = layer.rectangle
    inside = place.x >= 0 and place.y >= 0 and place.x + place.width <= width and place.y + place.height <= height
    if inside or not layer.visible:
        return 0.0
    seen = layer.image[..., 3] >= _least_seen(layer.opacity)
    total = np.count_nonzero(seen)
    left = np.count_nonzero(seen[_rows_and_columns(layer, (0, 0, width, height))])
    return 1 - left / total if total else 0.0


def cut_notes(composition: Composition) -> list[str]:
    """Which layers the canvas cuts, in words; of shadows those that fall on no picture."""
    notes: list[str] = []
    width, height = composition.width, composition.height
    beyond = len(fallen_beyond((0, 0, width, height), composition.layers))
    for number, layer in enumerate(composition.layers):
        share = 0.0 if layer.thrown and number >= beyond else _share_outside(layer, width, height)
        if share == 1:
            notes.append(
                f"{layer.label} lies wholly outside the canvas of {width}x{height}: nothing of it is seen. Give it "
                "another place, or a larger canvas."
            )
        elif share >= CUT:
            notes.append(
                f"{layer.label} is cut by the canvas: {share:.0%} of what is visible of it lies outside. Give it "
                "another place, or the canvas a pad."
            )
    return notes


def growth_notes(composition: Composition, layers: Sequence[Layer], pad: int) -> list[str]:
    """By which layers a canvas is larger than the opaque picture that they lie on, in words."""
    lowest = next(number for number, layer in enumerate(layers) if not layer.thrown)
    below, above = layers[lowest], layers[lowest + 1 :]
    size = composition.width - 2 * pad, composition.height - 2 * pad
    width, height = below.rectangle.width, below.rectangle.height
    if size == (width, height) or not below.backs(below.rectangle.box):
        return []
    beyond = [layer for layer in above if layer.visible and below.rectangle.is_left_by(layer.rectangle)]
    names = [layer.label for layer in beyond if not layer.thrown] or [layer.label for layer in beyond]
    if not names:
        return []
    return [
        f"The canvas grew from {width}x{height} to {size[0]}x{size[1]}: {', '.join(names)[:80]} "
        f"reach{'es' * (len(names) == 1)} beyond {below.label}. To keep it, give canvas a size, or {below.label} as "
        "background."
    ]


def _visible_part(layers: Sequence[Layer], within: Box | None = None) -> Box | None:
    """The box of all pixels that are visible in some layer; none of the canvas is made."""
    boxes: list[Box] = []
    for layer in layers:
        place = layer.rectangle
        box = within or place.box
        left, top = max(layer.x, box[0]), max(layer.y, box[1])
        alpha = layer.image[..., 3][_rows_and_columns(layer, box)]
        seen = visible_box(alpha >= _least_seen(layer.opacity)) if layer.visible else None
        if seen is not None:
            boxes.append((seen[0] + left, seen[1] + top, seen[2] + left, seen[3] + top))
    return around(boxes) if boxes else None


def _rows_and_columns(layer: Layer, box: Box) -> tuple[slice, slice]:
    """Those of a layer's picture that lie within a box of the canvas."""
    left, top, right, bottom = box
    return (
        slice(max(top - layer.y, 0), max(bottom - layer.y, 0)),
        slice(max(left - layer.x, 0), max(right - layer.x, 0)),
    )


def around(boxes: Sequence[Box]) -> Box:
    """The box that holds some others."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _least_seen(opacity: float) -> int:
    """The least alpha that is visible after fading and rounding, as alpha facts have it; 256 where none is."""
    faded = to_bytes(to_float(np.arange(256, dtype=np.uint8)) * np.float32(opacity))
    return int(np.count_nonzero(faded <= MAX_INVISIBLE))
