"""The command `compose`: pictures of the user's put together in this process; the tool compose_layers in a terminal."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from layerdiffuse_mcp.api.layers import Canvas, PlacedLayer
from layerdiffuse_mcp.api.plan import GivenPicture
from layerdiffuse_mcp.api.requests import validated
from layerdiffuse_mcp.images.describe import describe
from layerdiffuse_mcp.images.files import open_regular
from layerdiffuse_mcp.outputs.compositions import save_composition
from layerdiffuse_mcp.outputs.index import Index
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import printable


def compose(
    layers: Sequence[Mapping[str, Any]],
    replace: Mapping[str, Mapping[str, Any]],
    canvas: Mapping[str, Any],
    options: argparse.Namespace,
    settings: Settings,
) -> int:
    """Put pictures together and print the file's path, where each layer lies, and what the alpha holds."""
    from layerdiffuse_mcp.cli.commands import ERR, OUT
    from layerdiffuse_mcp.images.composition import Wanted, kept_by
    from layerdiffuse_mcp.images.read import opened_file
    from layerdiffuse_mcp.images.work import run

    source = Path(options.source) if options.source else None
    kept = None
    if source:
        with opened_file(source) as file:
            kept = kept_by(file, source, opened_file, settings.max_pixels)
    placed = [validated(PlacedLayer, layer) for layer in layers]
    wanted = Wanted.of(placed, validated(Canvas, canvas), options.background, kept, replace)
    suffix = f".{options.format}" if options.format else source.suffix.lower() if source else ".png"

    def find(picture: GivenPicture) -> Path:
        return _found(picture, source, settings)

    composed = run(wanted.task(Path, find, suffix=suffix, max_pixels=settings.max_pixels))
    made, kept_in = save_composition(settings.output, composed, options.name, suffix)
    Index(settings).add([made], beside=[kept_in] if kept_in else [])
    OUT.print(f"composed: {made.path}")
    if kept_in:
        OUT.print(f"kept in: {kept_in}")
    for layer in composed.layers:
        OUT.print(f"layer: {printable(layer.name)} at {layer.x},{layer.y}, {layer.width}x{layer.height}", markup=False)
    OUT.print(f"alpha: {describe(composed.alpha)}")
    for note in composed.notes:
        ERR.print(f"note: {note}", markup=False)
    return 0


def _found(picture: GivenPicture, source: Path | None, settings: Settings) -> Path:
    """Where a picture is that a composition names: beside it, else in the folders that may be read."""
    from layerdiffuse_mcp.server.access import OpenedFile, find_picture

    folder = (source or Path()).absolute().parent
    beside = picture.model_copy(update={"name": str(folder / Path(picture.name).name)})
    folders = (folder, *settings.readable)
    with find_picture(beside, folders, lambda path: OpenedFile(path, open_regular(path))) as found:
        return found.path
