"""Doing what a picture task says, in this process; `backends.pictures` does it in another.

    composed = run(ComposeTask((PlacedFile(path, "apple"),), suffix=".psd"))
    path.write_bytes(composed.data)

Sizes come from headers and are checked before anything is decoded. N pixels of layers and canvas together take at most
20 bytes each at the peak, WebP files to read 24 and to write 48.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from layerdiffuse_mcp.api.outcome import Progress
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.alpha import Bytes, alpha_facts, halo
from layerdiffuse_mcp.images.colour import background_colour
from layerdiffuse_mcp.images.compose import Extent, Layer, arrange, canvas_size, flatten
from layerdiffuse_mcp.images.cutting import cut_out, matted
from layerdiffuse_mcp.images.export import check_side, encoded
from layerdiffuse_mcp.images.png import read_parameters, read_recipe
from layerdiffuse_mcp.images.preview import preview, preview_in_turn
from layerdiffuse_mcp.images.read import picture_size, read_picture
from layerdiffuse_mcp.images.sheet import make_sheet
from layerdiffuse_mcp.images.tasks import (
    CHECKERBOARD,
    Composed,
    ComposeTask,
    CutOutTask,
    Inspected,
    InspectTask,
    MakeSheetTask,
    MatteTask,
    PictureResult,
    PictureTask,
    Report,
    ResultT,
    Sheet,
    SheetTask,
    Shown,
)

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
    paths = [layer.path for layer in task.layers]
    below = task.background if isinstance(task.background, Path) else None
    sizes = [picture_size(path, task.max_pixels) for path in paths]
    extents = [
        Extent.of(layer.name, size, layer.x, layer.y, layer.scale, layer.opacity)
        for layer, size in zip(task.layers, sizes, strict=True)
    ]
    below_size = picture_size(below, task.max_pixels) if below else None
    canvas = canvas_size(extents, task.canvas, below_size, trim=task.trim, pad=task.pad)
    if not task.trim:
        check_side(task.suffix, max(canvas) + 2 * task.pad)
    _check_total([*sizes, *([below_size] if below_size else [])], extents, task.max_pixels)

    notes: list[str] = []
    pictures: list[Bytes] = []
    for path in [*paths, *([below] if below else [])]:
        report(Progress(fraction=READ * len(pictures) / (len(paths) + 1), message=f"reading {path.name[:80]}"))
        picture = read_picture(path, task.max_pixels)
        notes += [f"{path.name}: {note}" for note in picture.notes]
        pictures.append(picture.rgba)
        del picture  # its decoder's memory is the next one's
    layers = [
        Layer(image, given.name, given.x, given.y, given.scale, given.opacity)
        for given, image in zip(task.layers, pictures, strict=False)
    ]
    background = pictures[-1] if isinstance(task.background, Path) else task.background
    del pictures
    composition = arrange(layers, task.canvas, background, trim=task.trim, pad=task.pad)
    del layers, background

    flat = flatten(composition, _part(report, READ, FLATTENED, "putting layers together"))
    facts = alpha_facts(flat)
    shown = _shown([flat], CHECKERBOARD) if task.preview else None
    data = encoded(composition, flat, task.suffix, _part(report, FLATTENED, 1.0, f"encoding {task.suffix}"))
    return Composed(
        data=data,
        width=composition.width,
        height=composition.height,
        layers=len(composition.layers),
        alpha=facts,
        notes=tuple(notes),
        preview=shown,
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
    )


def sheet(task: SheetTask, report: Report) -> Sheet:
    """Show pictures side by side; one is in memory at a time."""
    sizes = [picture_size(path, task.max_pixels) for path in task.paths]
    pictures = (read_picture(path, task.max_pixels).rgba for path in task.paths)
    made = preview_in_turn(sizes, pictures, task.background)
    return Sheet(data=made.data, mime_type=made.mime_type)


WORK: dict[type[Any], Callable[[Any, Report], PictureResult]] = {
    ComposeTask: compose,
    InspectTask: inspect,
    SheetTask: sheet,
    CutOutTask: cut_out,
    MatteTask: matted,
    MakeSheetTask: make_sheet,
}


def _check_total(sizes: Sequence[tuple[int, int]], extents: Sequence[Extent], max_pixels: int) -> None:
    """Refuse what would not fit into memory, before any of it is decoded."""
    scaled = [(extent.width, extent.height) for extent in extents]
    total = sum(
        max(width * height, wide * high)
        for (width, height), (wide, high) in zip(sizes, [*scaled, *sizes[len(scaled) :]], strict=True)
    )
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
