"""Small pictures that show transparency to those who look: on a checkerboard or a colour, light enough to send.

    made = preview([rgba, another])        # one contact sheet
    made.data, made.mime_type              # at most 512 px and 22 kB, each picture numbered

Pictures are shrunk with their colour weighted by alpha, so no colour that is invisible in the original shows up.
"""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from layerdiffuse_mcp.images.alpha import Bytes, Floats, checkerboard, to_bytes, to_float
from layerdiffuse_mcp.images.colour import background_colour
from layerdiffuse_mcp.images.resize import resized_channels
from layerdiffuse_mcp.images.tasks import CHECKERBOARD, Colour

MAX_SIDE = 512
MAX_BYTES = 22_000
GUTTER = 4
GUTTER_TONE = 0.35
TINY = 128  # up to this long side a picture is enlarged, by whole pixels
MAX_ENLARGEMENT = 4
JPEG_QUALITIES = (92, 85, 75, 60, 45, 30)
DIGITS = 11  # height in pixels of the numbers on several pictures, smaller where a picture is


@dataclass(frozen=True)
class Preview:
    """An encoded picture: `data`, its `mime_type` (image/png, or image/jpeg where PNG is too large) and size in px."""

    data: bytes
    mime_type: str
    width: int
    height: int


def preview(
    pictures: Sequence[Bytes],
    background: str = CHECKERBOARD,
    max_side: int = MAX_SIDE,
    max_bytes: int = MAX_BYTES,
) -> Preview:
    """One small opaque picture that shows all of `pictures`, numbered from 1 where they are several.

    Args:
        pictures: at least one, (H, W, 4), uint8, straight alpha; sizes may differ.
        background: "checkerboard", or a colour: a name such as "black", or "#rrggbb".
        max_side: of the result, in pixels. Pictures are never enlarged, but for tiny ones: up to 4 times.
        max_bytes: of the encoded result.

    Raises:
        InvalidRequest: the background is not a colour.
    """
    sizes = [(picture.shape[1], picture.shape[0]) for picture in pictures]
    return preview_in_turn(sizes, pictures, background, max_side, max_bytes)


def preview_in_turn(
    sizes: Sequence[tuple[int, int]],
    pictures: Iterable[Bytes],
    background: str = CHECKERBOARD,
    max_side: int = MAX_SIDE,
    max_bytes: int = MAX_BYTES,
) -> Preview:
    """As `preview`, for pictures that are read one after another: their sizes (width, height) come first.

    Takes 4 bytes a pixel of the picture in hand, beyond the picture itself.
    """
    sheet = _sheet(sizes, pictures, background_colour(background), max_side)
    while True:
        for data, mime_type in _encodings(sheet):
            if len(data) <= max_bytes:
                return Preview(data, mime_type, sheet.shape[1], sheet.shape[0])
        height, width = (max(1, int(side * 0.75)) for side in sheet.shape[:2])
        sheet = cv2.resize(sheet, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)


def _encodings(sheet: Bytes):
    """The sheet as PNG, then as JPEG of falling quality, each made only when asked for."""
    image = Image.fromarray(sheet)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=6)
    yield buffer.getvalue(), "image/png"
    for quality in JPEG_QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        yield buffer.getvalue(), "image/jpeg"


def _sheet(sizes: Sequence[tuple[int, int]], pictures: Iterable[Bytes], colour: Colour | None, max_side: int) -> Bytes:
    """All pictures side by side in cells of one size, within `max_side`: (H, W, 3), uint8."""
    widest, tallest = max(width for width, _ in sizes), max(height for _, height in sizes)
    columns, factor = _arrangement(len(sizes), widest, tallest, max_side)
    rows = math.ceil(len(sizes) / columns)
    width, height = (max(1, int(side * factor)) for side in (widest, tallest))

    sheet = np.full(
        (rows * height + (rows - 1) * GUTTER, columns * width + (columns - 1) * GUTTER, 3), GUTTER_TONE, np.float32
    )
    for index, picture in enumerate(pictures):
        top, left = (index // columns) * (height + GUTTER), (index % columns) * (width + GUTTER)
        own = _own_factor(picture, factor, (width, height))
        sheet[top : top + height, left : left + width] = _shown(picture, own, height, width, colour)
        if len(sizes) > 1:
            _number(sheet[top : top + height, left : left + width], index + 1)
    return to_bytes(sheet)


def _own_factor(picture: Bytes, factor: float, cell: tuple[int, int]) -> float:
    """What a picture is scaled by: as the largest, or where that is shrunk and it is smaller, as far as it fits.

    A small foreground beside a large photograph is seen, too. It is never enlarged.
    """
    room = min(side / own for side, own in zip(cell, (picture.shape[1], picture.shape[0]), strict=True))
    return factor if factor >= 1 else max(factor, min(1.0, room))


def _number(cell: Floats, number: int) -> None:
    """Write a number into the top left corner of a cell (H, W, 3), 0 to 1: white on black, to be read on anything."""
    font, text = cv2.FONT_HERSHEY_SIMPLEX, str(number)
    scale = min(DIGITS, max(1, cell.shape[0] // 3)) / cv2.getTextSize("0", font, 1, 1)[0][1]
    (width, height), _ = cv2.getTextSize(text, font, scale, 1)
    label = np.zeros((height + 6, width + 6, 3), np.uint8)
    cv2.putText(label, text, (3, height + 2), font, scale, (255, 255, 255), 1, cv2.LINE_AA)
    shown = label[: cell.shape[0], : cell.shape[1]]
    cell[: shown.shape[0], : shown.shape[1]] = to_float(shown)


def _arrangement(count: int, widest: int, tallest: int, max_side: int) -> tuple[int, float]:
    """The number of columns that shows `count` pictures largest, and the factor that they are scaled by."""
    best = (1, 0.0)
    for columns in range(1, count + 1):
        rows = math.ceil(count / columns)
        room = ((max_side - (columns - 1) * GUTTER) / columns, (max_side - (rows - 1) * GUTTER) / rows)
        factor = min(room[0] / widest, room[1] / tallest)
        if factor > best[1]:
            best = (columns, factor)
    columns, factor = best
    if factor >= 1:
        factor = min(MAX_ENLARGEMENT, int(factor)) if max(widest, tallest) <= TINY else 1
    return columns, factor


def _shown(picture: Bytes, factor: float, height: int, width: int, colour: Colour | None) -> Floats:
    """One picture scaled by `factor` in the middle of a cell (height, width, 3), 0 to 1."""
    cell = checkerboard(height, width) if colour is None else np.full((height, width, 3), colour, np.float32)
    size = (_fit(picture.shape[1], factor, width), _fit(picture.shape[0], factor, height))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_NEAREST
    planes = dict(resized_channels(picture, *size, how))
    small = np.stack([planes[channel] for channel in range(4)], axis=-1)
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    place = np.s_[top : top + size[1], left : left + size[0]]
    cell[place] = small[..., :3] + cell[place] * (1 - small[..., 3:])
    return cell


def _fit(side: int, factor: float, room: int) -> int:
    return max(1, min(room, round(side * factor)))
