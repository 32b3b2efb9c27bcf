"""Sprite sheets: pictures in the cells of one picture, each on a canvas of the same size, and a numbered preview.

    made = make_sheet(MakeSheetTask(paths, names, SheetOptions(cell=(128, 128), anchor="bottom")), report)
    grid = Grid((128, 128), columns=4, count=8, padding=2)      # where the cells lie, before there is a pixel
    sprite = fitted(rgba, (128, 128), "bottom")                 # (128, 128, 4)

Cells lie row by row. Between the cells are `padding` transparent pixels; around each frame its outermost pixels are
repeated `extrude` times, so that engines that interpolate see none of a neighbour. Pixels of all pictures and of the
sheet are counted before anything is decoded or allocated; N of them take at most 9 bytes each, WebP 48.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from layerdiffuse_mcp.api.cells import MAX_CELL
from layerdiffuse_mcp.api.layers import ANCHORS
from layerdiffuse_mcp.api.outcome import Progress
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.alpha import MAX_INVISIBLE, Box, Bytes, alpha_facts, defringe, visible_box
from layerdiffuse_mcp.images.export import check_side, webp_bytes
from layerdiffuse_mcp.images.png import png_bytes
from layerdiffuse_mcp.images.preview import MAX_SIDE, preview
from layerdiffuse_mcp.images.read import picture_size, read_picture
from layerdiffuse_mcp.images.tasks import Frame, MadeSheet, MakeSheetTask, Report, SheetOptions, Shown
from layerdiffuse_mcp.images.transform import resampled

Size = tuple[int, int]
"""Width and height in pixels."""

MAX_SHEET_SIDE = 16_384
READ, PLACED = 0.5, 0.7
"""Shares of the progress at which the pictures are read, and in their cells."""
LABEL_SHARE = 0.22
"""Height of a number in the preview, as a share of a cell's shorter side."""


@dataclass(frozen=True)
class Grid:
    """`count` cells in rows of `columns`; each has `extrude` pixels of its own around it."""

    cell: Size
    columns: int
    count: int
    padding: int = 0
    extrude: int = 0

    @property
    def rows(self) -> int:
        """How many there are; the last may not be full."""
        return math.ceil(self.count / self.columns)

    @property
    def spacing(self) -> int:
        """Pixels between two cells."""
        return self.padding + 2 * self.extrude

    @property
    def size(self) -> Size:
        """Of the whole sheet."""
        return tuple(
            number * side + (number - 1) * self.spacing + 2 * self.extrude
            for number, side in zip((self.columns, self.rows), self.cell, strict=True)
        )  # pyright: ignore[reportReturnType] - two sides

    def place(self, index: int) -> tuple[int, int]:
        """The top left corner of a cell, x and y."""
        row, column = divmod(index, self.columns)
        return (
            self.extrude + column * (self.cell[0] + self.spacing),
            self.extrude + row * (self.cell[1] + self.spacing),
        )

    def check(self, suffix: str, max_pixels: int) -> None:
        """Make sure that such a sheet can be made.

        Raises:
            InvalidRequest: it is too large.
        """
        width, height = self.size
        if max(width, height) > MAX_SHEET_SIDE or width * height > max_pixels:
            raise InvalidRequest(
                f"The sheet would have {width}x{height} pixels; at most {MAX_SHEET_SIDE} a side and "
                f"{max_pixels / 1e6:g} million in all are made. Give a smaller cell or fewer pictures."
            )
        check_side(suffix, max(width, height))


def square_columns(count: int) -> int:
    """Columns that make a sheet of `count` cells about as many cells high as wide."""
    return max(1, math.ceil(math.sqrt(count)))


def fitted(picture: Bytes, cell: Size, anchor: str = "center", factor: float | None = None) -> Bytes:
    """A picture on a transparent canvas of a cell's size, `anchor` saying where: (H, W, 4), uint8.

    `factor` scales it; without one it is made smaller where it is too large.
    """
    height, width = picture.shape[:2]
    scale = min(1.0, cell[0] / width, cell[1] / height) if factor is None else factor
    size = tuple(max(1, min(room, round(side * scale))) for side, room in zip((width, height), cell, strict=True))
    sprite = resampled(picture, (size[0], size[1]))
    canvas = np.zeros((cell[1], cell[0], 4), np.uint8)
    left, top = (
        math.floor((room - side) * share) for room, side, share in zip(cell, size, ANCHORS[anchor], strict=True)
    )
    canvas[top : top + size[1], left : left + size[0]] = sprite
    return canvas


def make_sheet(task: MakeSheetTask, report: Report) -> MadeSheet:
    """Put pictures into the cells of one sheet."""
    options, count = task.options, len(task.paths)
    sizes = [picture_size(path, task.max_pixels) for path in task.paths]
    total = sum(width * height for width, height in sizes)
    if total > task.max_pixels:
        raise InvalidRequest(
            f"The pictures have {total / 1e6:.0f} million pixels together, and at most {task.max_pixels / 1e6:g} "
            "million go into a sheet. Give fewer or smaller ones."
        )
    columns = min(options.columns or square_columns(count), count)
    if options.cell is not None or not options.trim:
        _grid(options, sizes, columns).check(task.suffix, task.max_pixels)
    sprites, notes = _read(task, report)
    grid = _grid(options, [size_of(sprite) for sprite in sprites], columns)
    grid.check(task.suffix, task.max_pixels)

    sheet = np.zeros((grid.size[1], grid.size[0], 4), np.uint8)
    factors = factors_of(options.fit, [size_of(sprite) for sprite in sprites], grid.cell)
    frames: list[Frame] = []
    for index, name in enumerate(task.names):
        report(Progress(fraction=READ + (PLACED - READ) * index / count, message="filling cells"))
        canvas = fitted(sprites[index], grid.cell, options.anchor, factors[index])
        sprites[index] = sprites[index][:0]  # its memory is the next one's
        frames.append(put(sheet, canvas, grid, index, name, trim=options.trim))
    report(Progress(fraction=PLACED, message=f"encoding {task.suffix}"))
    shown = numbered_preview(sheet, grid) if task.preview else None
    return MadeSheet(
        data=webp_bytes(sheet) if task.suffix == ".webp" else png_bytes(sheet),
        width=grid.size[0],
        height=grid.size[1],
        cell=grid.cell,
        columns=columns,
        spacing=grid.spacing,
        margin=grid.extrude,
        frames=tuple(frames),
        alpha=alpha_facts(sheet),
        notes=tuple(notes),
        preview=shown,
    )


def numbered_preview(sheet: Bytes, grid: Grid) -> Shown:
    """A small picture of a sheet on a checkerboard, each cell with its number, from 1."""
    factor = min(1.0, MAX_SIDE / max(sheet.shape[:2]))
    width, height = (max(1, round(side * factor)) for side in grid.size)
    small = Image.fromarray(resampled(sheet, (width, height)))
    pen = ImageDraw.Draw(small)
    font = ImageFont.load_default(max(8, min(20, round(LABEL_SHARE * factor * min(grid.cell)))))
    for index in range(grid.count):
        x, y = (round(part * factor) + 1 for part in grid.place(index))
        box = pen.textbbox((x + 2, y + 1), str(index + 1), font=font)
        pen.rectangle((x, y, box[2] + 2, box[3] + 2), fill=(0, 0, 0, 255))
        pen.text((x + 2, y + 1), str(index + 1), font=font, fill=(255, 255, 255, 255))
    made = preview([np.asarray(small)])
    return Shown(made.data, made.mime_type)


def _read(task: MakeSheetTask, report: Report) -> tuple[list[Bytes], list[str]]:
    """The pictures, trimmed and without fringe where that is wanted, and what was changed while they were read."""
    sprites: list[Bytes] = []
    notes: list[str] = []
    for path, name in zip(task.paths, task.names, strict=True):
        report(Progress(fraction=READ * len(sprites) / len(task.paths), message=f"reading {path.name[:80]}"))
        picture = read_picture(path, task.max_pixels)
        notes += [f"{name}: {note}" for note in picture.notes]
        sprite = cleaned(picture.rgba, trim=task.options.trim, clean=task.options.defringe)
        if sprite[..., 3].max() <= MAX_INVISIBLE:
            notes.append(f"{name}: nothing is visible; its cell is empty")
        sprites.append(sprite)
    return sprites, notes


def cleaned(rgba: Bytes, *, trim: bool, clean: bool) -> Bytes:
    """A picture without fringe (in place) and cut to what is visible, where that is wanted; an empty one stays."""
    if clean:
        defringe(rgba)
    box = visible_box(rgba[..., 3] > MAX_INVISIBLE) if trim else None
    return rgba if box is None else _cut(rgba, box).copy()


def _grid(options: SheetOptions, sizes: Sequence[Size], columns: int) -> Grid:
    largest = (max(width for width, _ in sizes), max(height for _, height in sizes))
    cell = options.cell or (min(largest[0], MAX_CELL), min(largest[1], MAX_CELL))
    return Grid(cell, columns, len(sizes), options.padding, options.extrude)


def factors_of(fit: str, sizes: Sequence[Size], cell: Size) -> list[float]:
    """How each picture is scaled."""
    each = [min(cell[0] / width, cell[1] / height) for width, height in sizes]
    match fit:
        case "contain":
            return each
        case "together":
            return [min(each)] * len(each)
        case _:
            return [min(1.0, factor) for factor in each]


def put(sheet: Bytes, canvas: Bytes, grid: Grid, index: int, name: str, *, trim: bool) -> Frame:
    """Put a cell's canvas into the sheet; its frame is what is visible of it, or without `trim` all of it."""
    left, top, right, bottom = _frame_box(canvas, trim)
    part = canvas[top:bottom, left:right]
    x, y = grid.place(index)
    reach = grid.extrude
    around = np.pad(part, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    sheet[y + top - reach : y + bottom + reach, x + left - reach : x + right + reach] = around
    width, height = right - left, bottom - top
    return Frame(name, (x + left, y + top, width, height), (left, top, width, height), grid.cell)


def _frame_box(canvas: Bytes, trim: bool) -> Box:
    whole = (0, 0, canvas.shape[1], canvas.shape[0])
    return (visible_box(canvas[..., 3] > MAX_INVISIBLE) or whole) if trim else whole


def _cut(rgba: Bytes, box: Box) -> Bytes:
    left, top, right, bottom = box
    return rgba[top:bottom, left:right]


def size_of(picture: Bytes) -> Size:
    return picture.shape[1], picture.shape[0]
