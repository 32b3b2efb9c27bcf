"""Pictures as they are asked for by address: a part, smaller, on a background, in another format; no file is made.

    shown = view(ViewTask(path, width=512, format="jpg", background="white", crop="visible"), report)
    shown.data, shown.mime_type, shown.width, shown.height

A view has at most MAX_VIEW pixels a side and MAX_BYTES: what would have more is made smaller. It is never larger than
the picture, and holds neither recipe nor id.
"""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from layerdiffuse_mcp.api.fields import near
from layerdiffuse_mcp.api.outcome import Progress
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.alpha import Bytes, alpha_facts, checkerboard, composite
from layerdiffuse_mcp.images.colour import background_colour
from layerdiffuse_mcp.images.read import read_picture
from layerdiffuse_mcp.images.tasks import VIEWED, Report, View, ViewTask
from layerdiffuse_mcp.images.transform import resampled
from layerdiffuse_mcp.wording import quoted

MAX_VIEW = 2048
MAX_BYTES = 750_000
"""A million in base64, the most that clients take."""
SMALLER = 0.8
VISIBLE = "visible"
LOSSY = {"webp": (90, 75), "jpg": (92, 75)}
"""Qualities that are tried before the picture is made smaller; PNG has none."""

Box = tuple[int, int, int, int]


def view(task: ViewTask, report: Report) -> View:
    """Show a picture.

    Raises:
        ImageError: it cannot be read.
        InvalidRequest: the format, background or crop is none, or `width` is out of range.
    """
    format = (task.format or "png").strip().lower()
    if format not in VIEWED:
        raise InvalidRequest(f"format: pictures are not shown as {quoted(format)}. {near(format, VIEWED)}")
    if task.width is not None and not 1 <= task.width <= MAX_VIEW:
        raise InvalidRequest(f"width: {task.width} is out of range; allowed is 1 to {MAX_VIEW} pixels.")
    background = task.background or ("white" if format == "jpg" else None)
    if background:
        background_colour(background)
    report(Progress(fraction=0.1, message=f"reading {task.path.name[:80]}"))
    rgba = read_picture(task.path, task.max_pixels).rgba
    left, top, right, bottom = _box(rgba, task.crop)
    rgba = rgba[top:bottom, left:right]
    height, width = rgba.shape[:2]
    wanted = min(task.width or width, width, MAX_VIEW, max(1, width * MAX_VIEW // height))
    report(Progress(fraction=0.5, message="showing it"))
    while True:
        size = (wanted, min(MAX_VIEW, max(1, round(height * wanted / width))))
        shown = _on(resampled(rgba, size), background)
        for data in _encodings(shown, format):
            if len(data) <= MAX_BYTES:
                return View(data=data, mime_type=VIEWED[format], width=size[0], height=size[1])
        wanted = max(1, int(wanted * SMALLER))


def _box(rgba: Bytes, crop: str | None) -> Box:
    """Left, top, right and bottom of a part; the last two are exclusive."""
    height, width = rgba.shape[:2]
    if not crop:
        return (0, 0, width, height)
    if crop.strip().lower() == VISIBLE:
        return alpha_facts(rgba).bbox or (0, 0, width, height)
    try:
        left, top, right, bottom = (int(part) for part in crop.split(","))
    except ValueError:
        raise InvalidRequest(
            f'crop: {quoted(crop)} is no part of a picture. Give "{VISIBLE}", or left,top,right,bottom in pixels, as '
            "in a result's bbox."
        ) from None
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise InvalidRequest(f"crop: {quoted(crop)} is not inside the picture, which is 0,0,{width},{height}.")
    return left, top, right, bottom


def _on(rgba: Bytes, background: str | None) -> Bytes:
    """A picture as it is, or opaque on a colour or a checkerboard."""
    if background is None:
        return rgba
    colour = background_colour(background)
    return composite(rgba, checkerboard(*rgba.shape[:2]) if colour is None else colour)


def _encodings(picture: Bytes, format: str) -> Iterator[bytes]:
    """The file, the best first, each made only when asked for."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    for quality in LOSSY.get(format, (None,)):
        buffer = io.BytesIO()
        if quality is None:
            image.save(buffer, "PNG", compress_level=6)
        else:
            image.save(buffer, "JPEG" if format == "jpg" else "WEBP", quality=quality)
        yield buffer.getvalue()
