"""Doing what a picture task says, in this process; `backends.pictures` does it in another.

    composed = run(ComposeTask((PlacedFile(path, "apple"),), suffix=".psd"))
    path.write_bytes(composed.data)

Sizes come from headers and are checked before anything is decoded. N pixels of layers and canvas together take at most
20 bytes each at the peak, WebP files to read 24 and to write 48.
"""

import contextlib
import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from layerdiffuse_mcp.api.layers import MAX_SIDE, Canvas, LayerOptions, Shadow
from layerdiffuse_mcp.api.outcome import Progress
from layerdiffuse_mcp.errors import ImageError, InvalidRequest
from layerdiffuse_mcp.images.alpha import Box, Bytes, Floats, alpha_facts, halo
from layerdiffuse_mcp.images.blend import NORMAL
from layerdiffuse_mcp.images.colour import background_colour, hex_of
from layerdiffuse_mcp.images.compose import (
    MAX_CANVAS_PIXELS,
    Composition,
    Layer,
    arrange,
    canvas_size,
    cut_notes,
    flatten,
    growth_notes,
    holding,
)
from layerdiffuse_mcp.images.composition import KEEPERS, Kept, KeptLayer, kept_by, kept_picture, record
from layerdiffuse_mcp.images.cutting import cut_out, matted
from layerdiffuse_mcp.images.export import check_side, encoded, in_format, on_white
from layerdiffuse_mcp.images.layout import Rectangle, Shape, Size, where_it_lies
from layerdiffuse_mcp.images.png import read_parameters, read_recipe
from layerdiffuse_mcp.images.preview import preview, preview_in_turn
from layerdiffuse_mcp.images.read import opened_file, picture_size, read_picture
from layerdiffuse_mcp.images.sets import make_set, on_picture
from layerdiffuse_mcp.images.sheet import make_sheet
from layerdiffuse_mcp.images.tasks import (
    CHECKERBOARD,
    Composed,
    ComposeTask,
    CutOutTask,
    Document,
    DocumentTask,
    Inspected,
    InspectTask,
    MakeSheetTask,
    MatteTask,
    OnPictureTask,
    PictureResult,
    PictureTask,
    Placed,
    PlacedFile,
    Report,
    ResultT,
    SetTask,
    Sheet,
    SheetTask,
    Shown,
    ViewTask,
)
from layerdiffuse_mcp.images.transform import resampled, shadow_margin, shadow_of, transformed
from layerdiffuse_mcp.images.view import view

MAX_EMBEDDED = 20_000
"""Characters of embedded text that a result may carry."""
READ, FLATTENED = 0.3, 0.5
"""Shares of a composition's progress at which its layers are read, and flattened."""


def ignore(_: Progress) -> None:
    """A report that nobody reads."""


def run(task: PictureTask[ResultT], report: Report = ignore) -> ResultT:
    """Do a task to its end; `report` hears how far it is.

    Raises:
        ImageError: a file is no picture, damaged or too large.
        InvalidRequest: what is asked for is not possible.
        MemoryError: there is too little.
    """
    work: Any = WORK[type(task)]
    return work(task, report)


def compose(task: ComposeTask, report: Report) -> Composed:
    """Put layers together and encode them."""
    below = task.background if isinstance(task.background, Path) else None
    sizes = [picture_size(layer.path, task.max_pixels) for layer in task.layers]
    below_size = picture_size(below, task.max_pixels) if below else None
    shapes = [_shape(layer, size) for layer, size in zip(task.layers, sizes, strict=True)]
    room = _room(task, shapes, below_size)
    _check_total([*sizes, *([below_size] if below_size else [])], task.layers, shapes, task.max_pixels)

    notes: list[str] = []
    made: list[list[Layer]] = []

    def read(path: Path, done: int) -> Bytes:
        report(Progress(fraction=READ * done / (len(shapes) + 1), message=f"reading {path.name[:80]}"))
        picture = read_picture(path, task.max_pixels)
        notes.extend(f"{path.name}: {note}" for note in picture.notes)
        return picture.rgba

    for number, (given, shape) in enumerate(zip(task.layers, shapes, strict=True)):
        try:
            made.append(_layers(given, shape, read(given.path, number)))
        except InvalidRequest as error:
            raise InvalidRequest(f"Layer {given.name}: {error}") from None
    background = read(below, len(shapes)) if below else task.background
    assert not isinstance(background, Path)
    layers = _in_room(task, shapes, (0, 0, *room), made)
    composition = arrange(
        layers, task.size, background,
        background_at=task.background_at, room=room, trim=task.canvas.trim, pad=task.canvas.pad,
    )  # fmt: skip
    composition = in_format(composition, task.suffix)
    notes += cut_notes(composition)
    notes += growth_notes(composition, layers, task.canvas.pad) if task.fits else []
    del layers, made, background

    flat = flatten(composition, _part(report, READ, FLATTENED, "putting layers together"))
    facts = alpha_facts(flat)
    if task.suffix == ".jpg" and facts.opaque < 1:
        flat = on_white(flat)
        facts = alpha_facts(flat)
        notes.append("A jpg has no transparency: what shows through is white. Give a background for another colour.")
    shown = _shown([flat], CHECKERBOARD) if task.preview else None
    kept = record(_kept(task, composition)) if task.keep and task.suffix in KEEPERS.values() else None
    encoding = _part(report, FLATTENED, 1.0, f"encoding {task.suffix}")
    return Composed(
        data=encoded(composition, flat, task.suffix, encoding, kept),
        width=composition.width,
        height=composition.height,
        layers=tuple(_placed(layer) for layer in composition.layers if not layer.thrown),
        alpha=facts,
        notes=tuple(notes),
        preview=shown,
        record=kept,
    )


def inspect(task: InspectTask, report: Report) -> Inspected:
    """Look at a picture."""
    background_colour(task.background)
    report(Progress(fraction=0.05, message=f"reading {task.path.name[:80]}"))
    picture = read_picture(task.path, task.max_pixels)
    recipe, parameters = read_recipe(task.path, task.max_pixels), read_parameters(task.path, task.max_pixels)
    notes = picture.notes
    if len(str(recipe)) > MAX_EMBEDDED or len(parameters or "") > MAX_EMBEDDED:
        recipe, parameters = None, None
        notes = (*notes, "the embedded recipe is too long to show")
    report(Progress(fraction=0.4, message="looking at its alpha"))
    facts, fringe = alpha_facts(picture.rgba), halo(picture.rgba)
    report(Progress(fraction=0.7, message="looking at it whole"))
    shown = _shown([picture.rgba], task.background) if task.preview else None
    height, width = picture.rgba.shape[:2]
    return Inspected(
        format=picture.format,
        width=width,
        height=height,
        has_alpha=picture.has_alpha,
        alpha=facts,
        halo=fringe.describe(),
        notes=notes,
        recipe=recipe,
        parameters=parameters,
        preview=shown,
        layers=_layers_in(task),
    )


def _layers_in(task: InspectTask) -> tuple[str, ...]:
    """The layers of the composition that a picture is, by its record; none where none can be read."""
    with contextlib.suppress(ImageError), opened_file(task.path) as file:
        return tuple(layer.label for layer in kept_by(file, task.path, opened_file, task.max_pixels)[0].layers)
    return ()


def sheet(task: SheetTask, report: Report) -> Sheet:
    """Show pictures side by side; one is in memory at a time."""
    sizes = [picture_size(path, task.max_pixels) for path in task.paths]
    pictures = (read_picture(path, task.max_pixels).rgba for path in task.paths)
    made = preview_in_turn(sizes, pictures, task.background)
    return Sheet(data=made.data, mime_type=made.mime_type)


def document(task: DocumentTask, report: Report) -> Document:
    """Put the layers of a picture into one file, and see whether they are that picture."""
    width, height = task.size
    with tempfile.TemporaryDirectory() as folder:
        layers: list[PlacedFile] = []
        for layer in task.layers:
            path = Path(folder, layer.file)
            path.write_bytes(layer.data)
            left, top = layer.box[:2] if layer.box else (0, 0)
            layers.append(PlacedFile(path, layer.name, LayerOptions(name=layer.name, x=left, y=top)))
        canvas = Canvas(size=f"{width}x{height}")
        flat, layered = (
            compose(ComposeTask(tuple(layers), canvas, suffix=suffix, keep=task.keep, max_pixels=task.max_pixels), told)
            for suffix, told in ((".png", ignore), (f".{task.format}", report))
        )
    together = read_picture(io.BytesIO(flat.data), task.max_pixels).rgba
    given = read_picture(task.picture, task.max_pixels).rgba
    given = given if given.shape == together.shape else resampled(given, task.size)
    return Document(
        data=flat.data,
        document=layered.data,
        alpha=flat.alpha,
        difference=float(np.abs(_seen(given) - _seen(together)).mean()),
        record=layered.record,
    )


def _seen(rgba: Bytes) -> Floats:
    """What is seen of a picture: its colour weighted by alpha, and alpha; 0 to 255, float32."""
    alpha = rgba[..., 3:].astype(np.float32)
    return np.concatenate([rgba[..., :3] * (alpha / 255), alpha], axis=2)


WORK: dict[type[Any], Callable[[Any, Report], PictureResult]] = {
    ComposeTask: compose,
    InspectTask: inspect,
    SheetTask: sheet,
    CutOutTask: cut_out,
    MatteTask: matted,
    MakeSheetTask: make_sheet,
    ViewTask: view,
    SetTask: make_set,
    OnPictureTask: on_picture,
    DocumentTask: document,
}


def _shape(layer: PlacedFile, size: Size) -> Shape:
    """What becomes of a layer's size; raises InvalidRequest where it gets too large."""
    shape = Shape.of(size, layer.options)
    for width, height in {shape.resized, shape.turned} - {size}:
        if max(width, height) > MAX_SIDE or width * height > MAX_CANVAS_PIXELS:
            raise InvalidRequest(
                f"Layer {layer.name} would have {width}x{height} pixels: give a smaller scale or size."
            )
    return shape


def _room(task: ComposeTask, shapes: Sequence[Shape], below: Size | None) -> Size:
    """The canvas before it is trimmed and padded; raises InvalidRequest for one that is not possible."""
    reach = [shape.reach(layer.options) for layer, shape in zip(task.layers, shapes, strict=True)]
    room = canvas_size(reach, task.size, below, trim=task.canvas.trim, pad=task.canvas.pad)
    if not task.canvas.trim:
        check_side(task.suffix, max(room) + 2 * task.canvas.pad)
    return room


def _thrown(layer: Rectangle, shadow: Shadow) -> Rectangle:
    """Where the shadow of a layer lies."""
    margin = shadow_margin(shadow)
    return Rectangle(
        layer.x + shadow.dx - margin,
        layer.y + shadow.dy - margin,
        layer.width + 2 * margin,
        layer.height + 2 * margin,
    )


def _layers(given: PlacedFile, shape: Shape, rgba: Bytes) -> list[Layer]:
    """A layer, and below it what it throws; where it goes, unless it is anchored."""
    options = given.options
    image = transformed(rgba, options, shape)
    place = shape.reach(options)
    opacity = 1.0 if options.opacity is None else options.opacity
    layer = Layer(image, given.name, place.x, place.y, opacity, options.visible is not False, options.blend or NORMAL)
    if options.throws is None:
        return [layer]
    shade, _ = shadow_of(image, options.throws)
    where = _thrown(place, options.throws)
    opacity *= options.throws.opacity
    return [Layer(shade, f"{given.name} shadow", where.x, where.y, opacity, layer.visible, thrown=True), layer]


def _in_room(task: ComposeTask, shapes: Sequence[Shape], room: Box, made: Sequence[list[Layer]]) -> list[Layer]:
    """All layers where they go: those that are anchored lie against a canvas that holds the others."""
    if task.room is not None:
        room = (0, 0, *task.room)
    elif not isinstance(task.background, Path):
        free = [given.options.anchor is None for given in task.layers]
        room = holding(room, [layer for group, is_free in zip(made, free, strict=True) if is_free for layer in group])
    left, top, right, bottom = room
    layers: list[Layer] = []
    for given, shape, group in zip(task.layers, shapes, made, strict=True):
        if given.options.anchor is not None:
            place = shape.placed(given.options, (right - left, bottom - top))
            group = [replace(one, x=one.x + left + place.x, y=one.y + top + place.y) for one in group]
        layers += group
    return layers


def _placed(layer: Layer) -> Placed:
    where = layer.rectangle
    return Placed(layer.name, where.x, where.y, where.width, where.height, layer.visible)


def _kept(task: ComposeTask, composition: Composition) -> Kept:
    """What is kept of a composition: its layers as they lie on the finished canvas, and that canvas."""
    size = composition.width, composition.height
    shown = f"{size[0]}x{size[1]}"
    background = task.background
    below = composition.layers[0].rectangle.box[:2] if isinstance(background, Path) else (0, 0)
    placed = [layer.rectangle for layer in composition.layers if not layer.thrown][-len(task.layers) :]
    layers = tuple(
        KeptLayer.model_validate(
            {
                **layer.options.said(),
                **where_it_lies(layer.options, place, size),
                "name": layer.name,
                "image": kept_picture(layer.path),
            }
        )
        for layer, place in zip(task.layers, placed, strict=True)
    )
    return Kept(
        layers=layers,
        canvas=Canvas(size=shown) if task.canvas.size else Canvas(),
        before=shown,
        background=hex_of(background) if isinstance(background, tuple) else background and kept_picture(background),
        background_at=below,
    )


def _check_total(sizes: Sequence[Size], layers: Sequence[PlacedFile], shapes: Sequence[Shape], max_pixels: int) -> None:
    """Refuse what would not fit into memory, before any of it is decoded: each picture at its largest, and shadows."""
    largest = [[width * height] for width, height in sizes]
    thrown = 0
    for pixels, layer, shape in zip(largest, layers, shapes, strict=False):
        pixels += [width * height for width, height in (shape.resized, shape.turned)]
        if layer.options.throws:
            thrown += _thrown(Rectangle(0, 0, *shape.turned), layer.options.throws).pixels
    total = sum(max(pixels) for pixels in largest) + thrown
    if total > max_pixels:
        raise InvalidRequest(
            f"The layers have {total / 1e6:.0f} million pixels together, and at most {max_pixels / 1e6:g} "
            "million are put together. Give fewer or smaller ones."
        )


def _shown(pictures: Sequence[Bytes], background: str) -> Shown:
    made = preview(pictures, background)
    return Shown(made.data, made.mime_type)


def _part(report: Report, start: float, end: float, message: str) -> Callable[[float], None]:
    """A report of a part of the work: from `start` to `end` of the whole."""

    def of_the_whole(done: float) -> None:
        report(Progress(fraction=start + (end - start) * done, message=message))

    of_the_whole(0.0)
    return of_the_whole
