"""The command `compose`: pictures of the user's put together in this process; the tool compose_layers in a terminal."""

import argparse
import json
from pathlib import Path
from typing import Any, cast

from layerdiffuse_mcp.api.layers import COMPOSED, Canvas, PlacedLayer
from layerdiffuse_mcp.api.plan import GivenPicture
from layerdiffuse_mcp.api.requests import validated
from layerdiffuse_mcp.cli.flags import Commands, add_flag, add_output, given_fields, picture_file, settings_of
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import printable, quoted


def add(commands: Commands) -> None:
    """Add the command."""
    compose = commands.add_parser("compose", help="put pictures together, or change a layer of what was put together")
    compose.add_argument(
        "layers",
        nargs="*",
        metavar="LAYER",
        help="a picture, the lowest first: a file, or its fields as the tool compose_layers has them: "
        """'{"image": "lamp.png", "anchor": "bottom", "width": 300}'""",
    )
    compose.add_argument("--source", metavar="FILE", help="a png, ora or psd that was composed before: go on from it")
    compose.add_argument(
        "--replace",
        action="append",
        default=[],
        metavar="NAME=FIELDS",
        help="""change a layer of --source: 'lamp={"image": "blue-lamp.png"}'; can be given again""",
    )
    compose.add_argument("--background", metavar="X", help="what lies below: a colour or a file")
    for name, field in Canvas.model_fields.items():
        add_flag(compose, name, field)
    compose.add_argument("--format", choices=COMPOSED, help="kind of file; default: png, or that of --source")
    compose.add_argument("--name", help="words that the file is named by; default: those of --source")
    add_output(compose)
    compose.set_defaults(run=_compose)


def _compose(options: argparse.Namespace) -> int:
    """Put pictures together and print the file's path, where each layer lies, and what the alpha holds."""
    from layerdiffuse_mcp.cli.terminal import say, warn
    from layerdiffuse_mcp.images.composition import Wanted, kept_by
    from layerdiffuse_mcp.images.describe import describe
    from layerdiffuse_mcp.images.read import opened_file
    from layerdiffuse_mcp.images.work import run
    from layerdiffuse_mcp.outputs.compositions import name_for, save_composition
    from layerdiffuse_mcp.outputs.index import Index

    settings = settings_of(options)
    given = [text if text.lstrip().startswith("{") else {"image": text} for text in options.layers]
    layers = [_fields(layer, "LAYER") if isinstance(layer, str) else layer for layer in given]
    changes = dict(text.partition("=")[::2] for text in options.replace)
    replace = {name: _fields(text, "--replace") for name, text in changes.items()}
    canvas = validated(Canvas, given_fields(options, Canvas.model_fields))
    source = Path(options.source) if options.source else None
    kept, before = None, ".png"
    if source:
        with opened_file(source) as file:
            kept, before = kept_by(file, source, opened_file, settings.max_pixels)
    placed = [validated(PlacedLayer, layer) for layer in layers]
    wanted = Wanted.of(placed, canvas, options.background, kept, replace)
    suffix = f".{options.format}" if options.format else before

    def find(picture: GivenPicture) -> Path:
        return _found(picture, source, settings)

    composed = run(wanted.task(picture_file, find, suffix=suffix, max_pixels=settings.max_pixels))
    made, kept_in = save_composition(settings.output, composed, name_for(options.name, source), suffix)
    Index(settings).add([made], beside=[kept_in] if kept_in else [])
    say("composed", printable(made.path))
    if kept_in:
        say("kept in", printable(kept_in))
    for layer in composed.layers:
        say("layer", f"{printable(layer.name)} at {layer.x},{layer.y}, {layer.width}x{layer.height}")
    say("alpha", describe(composed.alpha, made.label))
    for note in composed.notes:
        warn(note, kind="note")
    return 0


def _fields(text: str, what: str) -> dict[str, Any]:
    """The fields of a layer, written as JSON."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{what} {quoted(text)} is no JSON object ({error}).") from None
    if not isinstance(fields, dict):
        raise InvalidRequest(f'{what} {quoted(text)} is no JSON object: give fields as {{"x": 40}}.')
    return cast(dict[str, Any], fields)


def _found(picture: GivenPicture, source: Path | None, settings: Settings) -> Path:
    """Where a picture is that a composition names: beside it, else in the folders that may be read."""
    from layerdiffuse_mcp.images.files import open_regular
    from layerdiffuse_mcp.server.access import OpenedFile, find_picture

    folder = (source or Path()).absolute().parent
    beside = picture.model_copy(update={"name": str(folder / Path(picture.name).name)})
    folders = (folder, *settings.readable)
    with find_picture(beside, folders, lambda path: OpenedFile(path, open_regular(path))) as found:
        return found.path
