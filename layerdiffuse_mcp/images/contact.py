"""A contact sheet: pictures on a checkerboard, each with a caption below, to look at side by side.

png = contact_sheet([(apple, "1: an apple"), (woman, "2: a woman")])
"""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from layerdiffuse_mcp.images.alpha import Bytes, checkerboard, to_bytes, to_float
from layerdiffuse_mcp.images.png import png_bytes
from layerdiffuse_mcp.images.sheet import fitted, square_columns

CELL = 384
GAP = 12
LINES, LINE = 3, 18
"""Of a caption, and the height of one in pixels."""
CHARACTERS = 46
"""Of a line."""


def contact_sheet(pictures: Sequence[tuple[Bytes, str]], cell: int = CELL) -> bytes:
    """A PNG of all pictures, opaque: each (H, W, 4), uint8, straight alpha, made to fit `cell` pixels, and its caption.

    Captions are cut where they are longer than three lines.
    """
    columns = square_columns(len(pictures))
    rows = math.ceil(len(pictures) / columns)
    step = (cell + GAP, cell + LINES * LINE + GAP)
    sheet = Image.new("RGB", (columns * step[0] + GAP, rows * step[1] + GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(LINE - 4)
    for number, (picture, caption) in enumerate(pictures):
        row, column = divmod(number, columns)
        left, top = GAP + column * step[0], GAP + row * step[1]
        sheet.paste(Image.fromarray(_on_checkerboard(fitted(picture, (cell, cell)))), (left, top))
        lines = textwrap.wrap(caption, CHARACTERS, max_lines=LINES, placeholder=" ...")
        for line, text in enumerate(lines):
            pen.text((left, top + cell + line * LINE), text, font=font, fill="black")
    return png_bytes(np.asarray(sheet))


def _on_checkerboard(rgba: Bytes) -> Bytes:
    pixels = to_float(rgba)
    alpha = pixels[..., 3:]
    return to_bytes(pixels[..., :3] * alpha + checkerboard(*rgba.shape[:2]) * (1 - alpha))
