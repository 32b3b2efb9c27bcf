"""What is done with a job's pictures before they are written: put into cells of one size, or onto a given picture.

    made = make_set(SetTask((png, another), ("apple", "pear"), Cell(size="64x64"), sheet=True), report)
    placed = on_picture(OnPictureTask(png, Path("photo.jpg"), field), report)

Pictures come encoded, as an engine hands them over, and go encoded, with the recipe that they came with.
"""

import io
from typing import Any

import numpy as np

from layerdiffuse_mcp.api.outcome import Progress
from layerdiffuse_mcp.api.sizes import placement
from layerdiffuse_mcp.images.alpha import Bytes, alpha_facts
from layerdiffuse_mcp.images.compose import Layer, arrange, flatten
from layerdiffuse_mcp.images.export import picture_bytes
from layerdiffuse_mcp.images.png import read_parameters, read_recipe
from layerdiffuse_mcp.images.read import read_picture
from layerdiffuse_mcp.images.sheet import Grid, Size, cleaned, factors_of, fitted, put, size_of, square_columns
from layerdiffuse_mcp.images.tasks import (
    COMPOSED,
    Frame,
    MadeSet,
    MadeSheet,
    OnPicture,
    OnPictureTask,
    Report,
    SetTask,
)
from layerdiffuse_mcp.images.transform import resampled

PADDING = 2
"""Transparent pixels between the cells of a set's sheet."""


def set_grid(cell: Size, count: int) -> Grid:
    """Where the cells of a set's sheet lie."""
    return Grid(cell, square_columns(count), count, PADDING)


def make_set(task: SetTask, report: Report) -> MadeSet:
    """Put pictures into cells; N pixels of them and of the sheet take at most 9 bytes each, WebP 48."""
    count, options = len(task.pictures), task.cell
    pictures = [read_picture(io.BytesIO(data), task.max_pixels).rgba for data in task.pictures]
    cell = options.pixels or size_of(pictures[0])
    sprites: list[Bytes] = []
    for index in range(count):
        sprites.append(cleaned(pictures[index], trim=options.trim, clean=options.defringe))
        pictures[index] = pictures[index][:0].copy()  # its memory is the next one's
    factors = factors_of(options.fit, [size_of(sprite) for sprite in sprites], cell)
    grid = set_grid(cell, count)
    sheet = np.zeros((grid.size[1], grid.size[0], 4), np.uint8) if task.sheet else None
    files: list[bytes] = []
    frames: list[Frame] = []
    alphas = []
    for index, (name, data) in enumerate(zip(task.names, task.pictures, strict=True)):
        report(Progress(fraction=index / (count + 1), message=f"filling cell {index + 1} of {count}"))
        canvas = fitted(sprites[index], cell, options.anchor, factors[index])
        said = _said(data, task.max_pixels)
        if isinstance(said["recipe"], dict):
            said["recipe"] |= {"subject": name}
        files.append(picture_bytes(canvas, task.format, **said))
        alphas.append(alpha_facts(canvas))
        if sheet is not None:
            frames.append(put(sheet, canvas, grid, index, name, trim=True))
    report(Progress(fraction=count / (count + 1), message="encoding the sheet"))
    made = None
    if sheet is not None:
        made = MadeSheet(
            data=picture_bytes(sheet, task.format),
            width=grid.size[0],
            height=grid.size[1],
            cell=cell,
            columns=grid.columns,
            spacing=grid.spacing,
            margin=grid.extrude,
            frames=tuple(frames),
            alpha=alpha_facts(sheet),
            notes=(),
            preview=None,
        )
    return MadeSet(files=tuple(files), alphas=tuple(alphas), cell=cell, sheet=made)


def on_picture(task: OnPictureTask, report: Report) -> OnPicture:
    """Put a foreground onto the whole picture that it was drawn for; nothing of that picture is resampled."""
    foreground = read_picture(io.BytesIO(task.foreground), task.max_pixels).rgba
    report(Progress(fraction=0.1, message=f"reading {task.picture.name[:80]}"))
    below = read_picture(task.picture, task.max_pixels).rgba
    place = placement(size_of(below), size_of(foreground), task.field)
    report(Progress(fraction=0.3, message="putting the foreground onto it"))
    layer = Layer(resampled(foreground, (place.width, place.height)), "foreground", place.x, place.y)
    flat = flatten(arrange([layer], size_of(below), below))
    del below, layer
    report(Progress(fraction=0.6, message="encoding it"))
    said = _said(task.foreground, task.max_pixels)
    if isinstance(said["recipe"], dict):
        said["recipe"] |= {"role": COMPOSED}
    facts = alpha_facts(flat)
    return OnPicture(
        data=picture_bytes(flat, task.format, **said),
        width=flat.shape[1],
        height=flat.shape[0],
        alpha=facts if facts.has_transparency else None,
        placement=place,
    )


def _said(data: bytes, max_pixels: int) -> dict[str, Any]:
    """What a file says of itself, as `picture_bytes` takes it."""
    file = io.BytesIO(data)
    return {"recipe": read_recipe(file, max_pixels), "parameters": read_parameters(file, max_pixels)}
