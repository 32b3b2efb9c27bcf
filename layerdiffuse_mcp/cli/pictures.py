"""The commands on finished pictures: inspect, cut-out and sheet. They do what the tools of these names do.

    layerdiffuse-mcp inspect mug.png
    layerdiffuse-mcp cut-out mug.png --background white -o out/
    layerdiffuse-mcp sheet walk-*.png --cell 128x128 --anchor bottom -o out/

Results go to stdout as `name: value` lines; warnings go to stderr.
"""

import argparse
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from layerdiffuse_mcp.api.cells import FITS, cell_size
from layerdiffuse_mcp.api.layers import ANCHORS
from layerdiffuse_mcp.api.outcome import EncodedFile, ImageResult, PictureFacts
from layerdiffuse_mcp.cli.flags import Commands, add_output, picture_file, settings_of
from layerdiffuse_mcp.families.matting import MATTING
from layerdiffuse_mcp.images.tasks import (
    Colour,
    CutOut,
    CutOutTask,
    InspectTask,
    MatteTask,
    PictureTask,
    ResultT,
    SheetOptions,
)
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import printable


def add(commands: Commands) -> None:
    """Add the commands."""
    inspect = commands.add_parser("inspect", help="say what a picture's alpha holds, its halo and its recipe")
    inspect.add_argument("image", type=Path, help="any picture")
    inspect.add_argument("--recipe", action="store_true", help="print the recipe, too, as JSON")
    inspect.set_defaults(run=_inspect)

    cut = commands.add_parser("cut-out", help="cut the subject out of a picture")
    cut.add_argument("image", type=Path, help="a picture with the subject")
    cut.add_argument(
        "--background",
        metavar="X",
        help="a colour, or the same scene without the subject; default: the border's; "
        "border: that, only where it joins the border",
    )
    cut.add_argument("--second-image", metavar="FILE", type=Path, help="the same subject before another background")
    cut.add_argument("--second-background", metavar="X", help="what lies behind it there: a colour or a file")
    cut.add_argument(
        "--translucent",
        action="store_true",
        help="the background shows through inside, too: glass, smoke, soft shadow",
    )
    cut.add_argument("--matting", choices=tuple(MATTING), help="for photographs: the network that finds the subject")
    add_output(cut)
    cut.set_defaults(run=_cut_out)

    sheet = commands.add_parser("sheet", help="put pictures into a sprite sheet with its atlas")
    sheet.add_argument("images", type=Path, nargs="+", help="the pictures, in the order of their cells")
    sheet.add_argument("--cell", metavar="WxH", help="size of a cell in pixels; default: the largest picture's")
    sheet.add_argument("--columns", type=int, help="cells in a row")
    sheet.add_argument("--anchor", choices=tuple(ANCHORS), default="center", help="where a picture lies in its cell")
    sheet.add_argument("--fit", choices=tuple(FITS), default="shrink", help="how pictures come to a cell's size")
    sheet.add_argument("--padding", type=int, default=2, help="transparent pixels between cells")
    sheet.add_argument("--extrude", type=int, default=0, help="times that a frame's outermost pixels are repeated")
    sheet.add_argument("--no-trim", dest="trim", action="store_false", help="keep what is invisible around a picture")
    sheet.add_argument(
        "--defringe", action="store_true", help="give soft edges the colour of what is solid beside them"
    )
    sheet.add_argument("--name", default="sheet", help="beginning of the files' names")
    add_output(sheet)
    sheet.set_defaults(run=_sheet)


def _inspect(options: argparse.Namespace) -> int:
    from layerdiffuse_mcp.backends.pictures import MEMORY
    from layerdiffuse_mcp.cli.terminal import say, warn
    from layerdiffuse_mcp.images.describe import describe

    held = _done(InspectTask(options.image, preview=False, max_pixels=settings_of(options).max_pixels), MEMORY)
    say("picture", f"{held.format}, {held.width}x{held.height}, {'with' if held.has_alpha else 'without'} alpha")
    say("alpha", describe(held.alpha))
    say("visible box", ", ".join(map(str, held.alpha.bbox)) if held.alpha.bbox else "none")
    say("halo", held.halo)
    say("recipe", "it holds the one it was drawn by" if held.recipe else "none")
    if held.layers:
        say("composition", json.dumps(held.layers, ensure_ascii=False))
    if held.parameters:
        say("parameters", json.dumps(held.parameters, ensure_ascii=False))
    if options.recipe and held.recipe:
        say("recipe as JSON", json.dumps(held.recipe, ensure_ascii=False))
    for note in held.notes:
        warn(note, kind="note")
    return 0


def _cut_out(options: argparse.Namespace) -> int:
    from layerdiffuse_mcp.backends.pictures import MEMORY
    from layerdiffuse_mcp.cli.terminal import say
    from layerdiffuse_mcp.hub import catalog
    from layerdiffuse_mcp.outputs.names import file_name, words_in
    from layerdiffuse_mcp.server.tools.cutouts import check_runs, check_together, joins_border

    settings = settings_of(options)
    check_together(
        options.background, options.second_image, options.second_background, options.matting,
        translucent=options.translucent,
    )  # fmt: skip
    task: PictureTask[CutOut] = CutOutTask(
        options.image, _ground(options.background, "background"), options.second_image,
        _ground(options.second_background, "second_background"), options.translucent,
        joins_border(options.background), max_pixels=settings.max_pixels,
    )  # fmt: skip
    memory = MEMORY
    if options.matting:
        network = MATTING[options.matting]
        check_runs(network)
        memory = network.memory
        task = MatteTask(
            options.image, catalog.matting_file(network, settings), network, max_pixels=settings.max_pixels
        )
    cut = _done(task, memory)
    facts = PictureFacts(role="foreground", width=cut.width, height=cut.height, alpha=cut.alpha)
    name = file_name(words_in(options.image), None, "cutout")
    _saved(settings, [EncodedFile(name=name, data=cut.data, picture=facts)], ["cut-out"], cut.warnings)
    say("how", cut.how)
    return 0


def _sheet(options: argparse.Namespace) -> int:
    from layerdiffuse_mcp.backends.pictures import MEMORY
    from layerdiffuse_mcp.cli.terminal import say
    from layerdiffuse_mcp.images.atlas import unique_names
    from layerdiffuse_mcp.images.tasks import MakeSheetTask
    from layerdiffuse_mcp.outputs.sheets import frame_name, own_stem, sheet_files

    settings = settings_of(options)
    how = SheetOptions(
        cell_size(options.cell), options.columns, options.anchor, options.fit, options.trim, options.defringe,
        options.padding, options.extrude,
    )  # fmt: skip
    names = unique_names([frame_name(path) for path in options.images])
    made = _done(MakeSheetTask(tuple(options.images), names, how, max_pixels=settings.max_pixels), MEMORY)
    now = datetime.now().astimezone()
    files = sheet_files(made, own_stem(options.name), "png", now)
    _saved(settings, files, ["sheet", "atlas", "atlas array"], made.notes, now)
    say("cells", f"{made.cell[0]}x{made.cell[1]}, {made.columns} a row, {len(made.frames)} filled")
    return 0


def _ground(given: str | None, what: str) -> Path | Colour | None:
    """A colour, else the path of a picture."""
    from layerdiffuse_mcp.images.colour import colour_or_picture
    from layerdiffuse_mcp.server.tools.cutouts import joins_border

    return None if given is None or joins_border(given) else colour_or_picture(given, what, picture_file)


def _done(task: PictureTask[ResultT], memory: int) -> ResultT:
    """The result of a task, from a process that is bounded in memory; with a bar."""
    import anyio

    from layerdiffuse_mcp.backends.pictures import PictureRoom
    from layerdiffuse_mcp.cli.terminal import progress_bar

    async def work() -> ResultT:
        async with PictureRoom(1, memory) as room:
            with progress_bar() as on_step:
                return await room.run(task, on_step)

    return anyio.run(work)


def _saved(
    settings: Settings, files: list[EncodedFile], names: list[str], warnings: Sequence[str], now: datetime | None = None
) -> None:
    """Put files on disk, the first of them a picture, and print what there is."""
    from layerdiffuse_mcp.cli.terminal import say, warn
    from layerdiffuse_mcp.images.describe import describe
    from layerdiffuse_mcp.outputs.index import Index
    from layerdiffuse_mcp.outputs.writer import save

    paths = save(settings.output, files, now=now)
    picture = files[0].picture
    assert picture is not None
    Index(settings).add([ImageResult(path=paths[0], **dict(picture))], beside=paths[1:])
    for name, path in zip(names, paths, strict=True):
        say(name, printable(path))
    if picture.alpha is not None:
        say("alpha", describe(picture.alpha, picture.label))
    for warning in warnings:
        warn(warning)
