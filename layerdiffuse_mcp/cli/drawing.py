"""The commands that draw: generate, upscale, redraw and reproduce. They are what the tools of these tasks are.

    layerdiffuse-mcp generate "a red apple" --count 4 -o out/
    layerdiffuse-mcp upscale apple.png "a red apple" --scale 2
    layerdiffuse-mcp decompose poster.png "a poster of a fair" --layers 6
    layerdiffuse-mcp redraw apple.png --seed 8 --steps 30
    layerdiffuse-mcp redraw --parameters pasted.txt
    layerdiffuse-mcp reproduce apple.png

Pictures, their previews and latents go to disk together; results are printed as `name: value` lines.
"""

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerdiffuse_mcp.api.detail import Detail
from layerdiffuse_mcp.api.finish import Finish, IntoCells
from layerdiffuse_mcp.api.outcome import EncodedFile, Outcome, Progress
from layerdiffuse_mcp.api.plan import GivenPicture, Planned
from layerdiffuse_mcp.api.requests import GenerateRequest, Request, apart, validated
from layerdiffuse_mcp.cli.flags import (
    Commands,
    add_flag,
    add_output,
    add_roles,
    given_fields,
    given_roles,
    settings_of,
)
from layerdiffuse_mcp.errors import ImageError, InvalidRequest
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import printable

if TYPE_CHECKING:
    from layerdiffuse_mcp.engine.startup import Engine
    from layerdiffuse_mcp.images.alpha import Bytes

NOT_FLAGS = {"kind", "prompt", "task", "stages", "inputs", "layer_prompts", "notes", "drawn", "drawn_with"}
"""Fields of a request that no flag of the same name sets."""
CHANGES = [name for name in GenerateRequest.model_fields if name not in NOT_FLAGS - {"prompt"}]
"""Fields of a request that `redraw` changes."""
PLACED = {"image", "mask", "strength", "resize_mode", "width", "height", "fit", "detail", "want"}
"""Fields of a request that say what is changed of a picture, and at which size."""
REDRAWN = [name for name in CHANGES if name not in {*PLACED, "prompt"}]
"""Fields of a request that `upscale` takes."""
APART = (
    "model", "layers", "depth", "document", "negative_prompt", "seed", "count", "steps", "guidance_scale",
    "noise_source", "name", "format", "metadata",
)  # fmt: skip
"""Fields of a request that `decompose` takes."""
PREVIEW_SUFFIXES = {"image/png": "-preview.png", "image/jpeg": "-preview.jpg"}
ATLAS = ("atlas", "atlas array")
"""What the files are called that go with a sheet."""
DOCUMENT = ("all layers", "kept in")
"""What the files are called that go with layers of a picture."""
LARGEST_TEXT = 50_000
"""Characters of a parameter text."""


def add(commands: Commands) -> None:
    """Add the commands."""
    generate = commands.add_parser("generate", help="draw pictures")
    generate.add_argument("prompt", nargs="?", default="", help="what to draw, for example 'a red apple'")
    generate.add_argument(
        "--task",
        choices=[task.value for task in Task],
        default=Task.TRANSPARENT.value,
        metavar="X",
        help=f"{{{', '.join(task.value for task in Task)}}} what to draw, and from which given pictures",
    )
    for name, field in GenerateRequest.model_fields.items():
        if name not in NOT_FLAGS:
            add_flag(generate, name, field)
    add_roles(generate)
    add_output(generate)
    generate.set_defaults(run=_generate)

    upscale = commands.add_parser("upscale", help="enlarge a transparent picture and redraw it with finer detail")
    upscale.add_argument("image", type=Path, metavar="FILE", help="a picture with real alpha")
    upscale.add_argument("prompt", help="what it shows")
    for name in ("scale", "strength"):
        add_flag(upscale, name, Detail.model_fields[name])
    for name in REDRAWN:
        add_flag(upscale, name, GenerateRequest.model_fields[name])
    add_output(upscale)
    upscale.set_defaults(run=_upscale)

    decompose = commands.add_parser("decompose", help="take a picture apart into layers with real alpha")
    decompose.add_argument("image", type=Path, metavar="FILE", help="any picture, or a layer of one")
    decompose.add_argument("prompt", help="what it shows, parts that are hidden included")
    for name in APART:
        add_flag(decompose, name, GenerateRequest.model_fields[name])
    add_output(decompose)
    decompose.set_defaults(run=_decompose)

    redraw = commands.add_parser("redraw", help="draw a picture again, with changes; or by an A1111 parameter text")
    redraw.add_argument("file", nargs="?", type=Path, help="a picture made by this program, whose recipe is inside")
    redraw.add_argument("--parameters", metavar="FILE", help="instead: a file with a parameter text; - reads stdin")
    for name in CHANGES:
        add_flag(redraw, name, GenerateRequest.model_fields[name])
    add_roles(redraw)
    add_output(redraw)
    redraw.set_defaults(run=_redraw)

    reproduce = commands.add_parser("reproduce", help="draw a picture again from its recipe, and compare")
    reproduce.add_argument("file", type=Path, help="a picture made by this program")
    add_output(reproduce)
    reproduce.set_defaults(run=_reproduce)


def _generate(options: argparse.Namespace) -> int:
    fields = given_fields(options, GenerateRequest.model_fields)
    request = validated(GenerateRequest, split(fields) | given_roles(options))
    draw(request, settings_of(options))
    return 0


def _upscale(options: argparse.Namespace) -> int:
    fields = given_fields(options, ("image", "prompt", *REDRAWN))
    detail = given_fields(options, ("scale", "strength"))
    draw(validated(GenerateRequest, fields | {"strength": 0, "detail": detail}), settings_of(options))
    return 0


def _decompose(options: argparse.Namespace) -> int:
    fields = apart(given_fields(options, ("prompt", *APART)))
    draw(validated(GenerateRequest, fields | {"inputs": {"blended": options.image}}), settings_of(options))
    return 0


def _redraw(options: argparse.Namespace) -> int:
    """Draw again by what a picture or a text says, but for the flags that were given."""
    from layerdiffuse_mcp.recipes import a1111, infotext
    from layerdiffuse_mcp.recipes.recipe import request_from

    if (options.file is None) == (options.parameters is None):
        raise InvalidRequest("redraw takes either a picture or --parameters: give one of them.")
    settings = settings_of(options)
    roles = {name: value for name, value in given_roles(options).items() if value}
    changes = split(given_fields(options, CHANGES)) | roles
    if options.parameters is not None:
        request = a1111.request_from(infotext.parse(read_text(options.parameters)), changes, settings)
    else:
        request = request_from(_recipe(options.file, settings), changes, _Finder(options.file, settings).find)
    draw(request, settings)
    return 0


def _reproduce(options: argparse.Namespace) -> int:
    """Draw a picture again from its recipe and say whether the new one is identical, equal within 1, or different.

    Returns 0 for the first two: pixels are promised within 1 of 255 on one device and version, as the rounding of a sum
    depends on how many pictures were drawn at once.
    """
    from layerdiffuse_mcp.cli.terminal import say
    from layerdiffuse_mcp.images.read import levels_apart
    from layerdiffuse_mcp.recipes.recipe import request_from

    file, settings = options.file, settings_of(options)
    request = request_from(_recipe(file, settings), find=_Finder(file, settings).find)
    apart = [levels_apart(file, path) for path in draw(request, settings)]
    nearest = min((levels for levels in apart if levels is not None), default=None)
    say("reproduced", _sameness(nearest))
    return 0 if nearest is not None and nearest <= 1 else 1


def _recipe(file: Path, settings: Settings) -> dict[str, Any]:
    """The recipe inside a picture; raises ImageError, which says what the picture is that holds none."""
    from layerdiffuse_mcp.images.read import opened_file
    from layerdiffuse_mcp.outputs.index import Index
    from layerdiffuse_mcp.outputs.undrawn import undrawn
    from layerdiffuse_mcp.recipes.recipe import read_recipe

    limit = settings.max_pixels
    with opened_file(file) as picture:
        return read_recipe(
            picture, limit, lambda: undrawn(picture, file.absolute(), Index(settings), opened_file, limit).instead
        )


def _sameness(levels: int | None) -> str:
    """What is said of a picture that differs by at most `levels` of 255 from its original; None: by its size."""
    match levels:
        case 0:
            return "identical"
        case 1:
            return "equal within 1 of 255"
        case _:
            how = "in size" if levels is None else f"by up to {levels} of 255"
            return f"different {how} (another version, device, number format or model drew the original)"


def draw(request: Request, settings: Settings) -> list[Path]:
    """Draw, put the pictures and their previews on disk together, and print what there is; the pictures' paths."""
    from layerdiffuse_mcp.engine.startup import load_engine
    from layerdiffuse_mcp.jobs.planner import plan

    planned = plan(request, settings)
    fetch(planned, settings)
    with contextlib.closing(load_engine()(settings)) as engine:
        return drawn(planned, engine, settings)


def fetch(planned: Planned, settings: Settings) -> None:
    """Download what is lacking, where the settings allow it."""
    from layerdiffuse_mcp.cli.terminal import progress_bar

    if planned.downloads:
        from layerdiffuse_mcp.hub.consent import check_licences
        from layerdiffuse_mcp.hub.download import prepare_all

        check_licences(planned.downloads, settings)
        with progress_bar() as on_step:
            prepare_all(planned.downloads, settings, on_step)


def drawn(planned: Planned, engine: "Engine", settings: Settings) -> list[Path]:
    """The paths of the pictures of a planned request, drawn, finished, saved and printed."""
    from layerdiffuse_mcp.outputs.index import Index
    from layerdiffuse_mcp.outputs.writer import saved

    outcome = _outcome(planned, engine)
    previews = _previews(outcome, planned.finish)
    made = saved(outcome.model_copy(update={"encoded": (*outcome.encoded, *previews)}), settings.output)
    Index(settings).add(made.images, made.model, beside=[*made.latents, *made.files])
    _print(made, len(previews))
    return [image.path for image in made.images]


def _outcome(planned: Planned, engine: "Engine") -> Outcome:
    """What all tasks of a request make together, and what becomes of it; with a bar."""
    import anyio

    from layerdiffuse_mcp.backends.pictures import PictureRoom
    from layerdiffuse_mcp.cli.terminal import progress_bar
    from layerdiffuse_mcp.jobs.finishing import finished, together

    outcomes: list[Outcome] = []
    count = len(planned.tasks)
    with progress_bar() as on_step:

        def report(step: Progress) -> None:
            number = f"{len(outcomes) + 1} of {count}: " if count > 1 else ""
            on_step(Progress(fraction=(len(outcomes) + step.fraction) / count, message=number + step.message))

        for task in planned.tasks:
            outcomes.append(engine.run(task, planned.inputs, report))
        outcome, finish = together(outcomes), planned.finish
        if finish is None:
            return outcome

        async def work() -> Outcome:
            async with PictureRoom(1) as room:
                return await finished(finish, outcome, planned.inputs, room, on_step)

        return anyio.run(work)


def _print(made: Outcome, previews: int) -> None:
    """Say what was made; the last files of it are so many previews."""
    from layerdiffuse_mcp.cli.terminal import say, warn
    from layerdiffuse_mcp.images.describe import describe

    others, shown = made.files[: len(made.files) - previews], iter(made.files[len(made.files) - previews :])
    each = previews == len(made.images)
    for picture in made.images:
        say(picture.subject or picture.label, printable(picture.path))
        if each:
            say("preview", printable(next(shown)))
        if picture.alpha is not None:
            say("alpha", describe(picture.alpha, picture.label))
        if picture.note:
            say("note", picture.note)
        if picture.reason:
            which = f"{picture.subject}: " if picture.subject else ""
            warn(which + picture.reason, kind=str(picture.verdict))
    beside = zip(ATLAS if made.sheet else DOCUMENT, others, strict=False)
    for name, path in [
        *beside,
        *(("preview", preview) for preview in shown),
    ]:
        say(name, printable(path))
    for latent in made.latents:
        say("latent", printable(latent))
    say("model", f"{made.model} on {made.device}, {made.timings.total:.1f} s")
    if made.licences:
        from layerdiffuse_mcp.recipes.told import licence_words

        say("licences", licence_words(made.licences))
    for warning in made.warnings:
        warn(warning)


def _previews(outcome: Outcome, finish: Finish | None) -> list[EncodedFile]:
    """The pictures on a checkerboard, to go beside them: for viewers that show transparency as black.

    One for each, of a set one of all, numbered in the order of the subjects.
    """
    pictures = [file for file in outcome.encoded if file.picture]
    if not isinstance(finish, IntoCells):
        return [_preview([file], file.name) for file in pictures]
    return [_preview(pictures[: len(finish.subjects)], pictures[-1].name)]


def _preview(files: Sequence[EncodedFile], name: str) -> EncodedFile:
    from layerdiffuse_mcp.images.preview import preview
    from layerdiffuse_mcp.images.read import read_picture

    shown: list[Bytes] = []
    for file in files:
        with io.BytesIO(file.data) as data:
            data.name = file.name
            shown.append(read_picture(data).rgba)
    made = preview(shown)
    return EncodedFile(name=Path(name).stem + PREVIEW_SUFFIXES[made.mime_type], data=made.data)


class _Finder:
    """Finds the pictures that a recipe starts from: beside the picture that it is in, or below a readable folder."""

    def __init__(self, file: Path, settings: Settings) -> None:
        self._folders = (file.absolute().parent, *settings.readable)

    def find(self, wanted: GivenPicture) -> Path:
        """Where it lies; raises ImageError where it is not found."""
        from layerdiffuse_mcp.images.files import open_regular
        from layerdiffuse_mcp.server.access import OpenedFile, find_picture

        with find_picture(wanted, self._folders, lambda path: OpenedFile(path, open_regular(path))) as found:
            return found.path


def split(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as flags say them: layers, and scale and strength of `detail`, joined by commas; `control` and `reference`
    as JSON.
    """
    said = {name: value.split(",") if name == "want" else value for name, value in fields.items()}
    if "detail" in said:
        said["detail"] = dict(zip(Detail.model_fields, said["detail"].split(","), strict=False))
    for name in ("control", "reference"):
        try:
            said |= {name: json.loads(said[name])} if name in said else {}
        except (ValueError, RecursionError):
            raise InvalidRequest(
                f'{name} is no JSON. Quote it for the shell: control is a list of {{"model": "a", "image": "a.png"}}, '
                "and reference is one such."
            ) from None
    return said


def read_text(name: str) -> str:
    """The text in a file, or on standard input."""
    from layerdiffuse_mcp.images.files import open_regular

    if name == "-":
        return sys.stdin.read(LARGEST_TEXT)
    try:
        with open_regular(Path(name)) as file:
            return file.read(LARGEST_TEXT).decode("utf-8", "replace")
    except OSError as error:
        raise ImageError(
            f"{printable(name)} cannot be read ({error.strerror}). Give a text file, or - for stdin."
        ) from None
