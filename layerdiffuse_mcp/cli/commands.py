"""What the commands do and print: the terminal's side of the engine's one door.

Results go to stdout as plain lines, so that they can be piped; bars and warnings go to stderr.
"""

import contextlib
import io
import os
import platform
import shutil
import sys
from collections.abc import Callable, Generator
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from layerdiffuse_mcp.api import outcome
from layerdiffuse_mcp.api.layers import COMPOSED
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.engine.startup import load_engine
from layerdiffuse_mcp.errors import LayerDiffuseError
from layerdiffuse_mcp.families.entries import ModelEntry
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import in_words, printable

PIPED_WIDTH = 240
OUT = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPED_WIDTH)
ERR = Console(stderr=True, highlight=False)
GB = 10**9


PICTURE_SUFFIXES = frozenset(f".{format}" for format in COMPOSED)
CLEAN = "layerdiffuse-mcp clean --older-than 30d"
PREVIEW_SUFFIXES = {"image/png": "-preview.png", "image/jpeg": "-preview.jpg"}


def generate(request: GenerateRequest, settings: Settings) -> int:
    """Draw, showing a bar; print each picture's path, its preview's and what its alpha holds."""
    _drawn(request, settings)
    return 0


def reproduce(file: Path, settings: Settings) -> int:
    """Draw a picture again from its recipe and say whether the new one is identical, equal within 1, or different.

    Returns 0 for the first two: pixels are promised within 1 of 255 on one device and version, as the rounding of a sum
    depends on how many pictures were drawn at once.
    """
    from layerdiffuse_mcp.api.plan import GivenPicture
    from layerdiffuse_mcp.images.files import open_regular
    from layerdiffuse_mcp.images.read import levels_apart, opened_file
    from layerdiffuse_mcp.recipes.recipe import read_recipe, request_from
    from layerdiffuse_mcp.server.access import OpenedFile, find_picture

    def find(wanted: GivenPicture) -> Path:
        folders = (file.absolute().parent, *settings.readable)
        with find_picture(wanted, folders, lambda path: OpenedFile(path, open_regular(path))) as found:
            return found.path

    with opened_file(file) as picture:
        recipe = read_recipe(picture, settings.max_pixels)
    apart = [levels_apart(file, path) for path in _drawn(request_from(recipe, find=find), settings)]
    nearest = min((levels for levels in apart if levels is not None), default=None)
    OUT.print(f"reproduced: {_sameness(nearest)}")
    return 0 if nearest is not None and nearest <= 1 else 1


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


def models(settings: Settings) -> int:
    """List the models and what each can do with the layer files that are here."""
    table = Table("model", "family", "size", "here", "can do now", "licence", "what it is")
    for entry in catalog.models(settings):
        able = [task.value for task, ready in catalog.tasks(entry, settings).items() if ready] if entry.prepared else []
        size = f"{entry.bytes / GB:.2f} GB" if entry.bytes else ""
        table.add_row(
            entry.name, entry.family or "?", size, "yes" if entry.prepared else "no", ", ".join(able),
            entry.licence or "", entry.description,
        )  # fmt: skip
    OUT.print(table)
    for entry in catalog.loras(settings):
        where = printable(entry.path) if entry.path else "not here"
        OUT.print(f"LoRA {entry.name}{f' (say: {entry.trigger})' if entry.trigger else ''}: {where}")
    OUT.print(f"Fetch one: layerdiffuse-mcp models prepare NAME (or {', '.join(FAMILIES)})")
    OUT.print(f"Your own bases, LoRAs and layer files (.safetensors) go into {settings.models_dir}")
    return 0


def prepare(name: str, task: Task | None, settings: Settings, *, verify: bool = False) -> int:
    """Fetch what a model needs, showing a bar; print each file that was fetched."""
    from layerdiffuse_mcp.hub import download

    methods = catalog.methods_for(catalog.find(name, settings), task) if task else None
    with progress_bar() as on_step:
        done = download.prepare(name, settings, on_step, methods=methods, verify=verify)
    for note in done.notes:
        ERR.print(f"[yellow]note:[/yellow] {note}")
    for file in done.fetched:
        OUT.print(f"fetched {file.file.name} ({in_words(file.bytes)} in {file.seconds:.0f} s): {file.path}")
    fetched = sum(file.bytes for file in done.fetched)
    OUT.print(f"{done.name} is ready: {in_words(fetched) if fetched else 'nothing had to be'} fetched")
    return 0


def doctor(settings: Settings) -> int:
    """One screen: machine, versions, folders, models, and the command for whatever is missing."""
    with contextlib.closing(load_engine()(settings)) as engine:
        status = engine.status()
    table = Table(show_header=False, box=None)
    for name, value in status.items():
        table.add_row(name.replace("_", " "), _shown(value))
    table.add_row("python", platform.python_version())
    for package in ("layerdiffuse-mcp", "torch", "diffusers", "mcp"):
        table.add_row(package, version(package))
    table.add_row("output folder", f"{settings.output} ({_writable(settings.output)})")
    table.add_row("holds", _held(settings.output))
    table.add_row("readable folders", ", ".join(str(folder) for folder in settings.readable))
    table.add_row("models folder", str(settings.models_dir))
    table.add_row("free disk", f"{shutil.disk_usage(_existing(settings.models_dir)).free / GB:.0f} GB")
    for entry in catalog.models(settings):
        table.add_row(entry.name, _forecast(entry, settings))
    OUT.print(table)
    return models(settings)


def _forecast(entry: ModelEntry, settings: Settings) -> str:
    """How a base would be placed in this machine's memory."""
    from layerdiffuse_mcp.engine.model_manager import ModelManager

    try:
        return ModelManager(settings).forecast(entry)
    except LayerDiffuseError as error:
        return str(error)


@contextlib.contextmanager
def progress_bar() -> Generator[Callable[[outcome.Progress], None]]:
    """A bar on stderr, and what moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=ERR, transient=True) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda step: bar.update(task, completed=step.fraction, description=step.message)


def _drawn(request: GenerateRequest, settings: Settings) -> list[Path]:
    """Draw, put the pictures and their previews on disk together, and print what there is; the pictures' paths."""
    from layerdiffuse_mcp.images.describe import describe
    from layerdiffuse_mcp.jobs.planner import plan
    from layerdiffuse_mcp.outputs.index import Index
    from layerdiffuse_mcp.outputs.writer import save

    planned = plan(request, settings)
    if planned.downloads:
        from layerdiffuse_mcp.hub.download import prepare_all

        with progress_bar() as on_step:
            prepare_all(planned.downloads, settings, on_step)
    with contextlib.closing(load_engine()(settings)) as engine, progress_bar() as on_step:
        result = engine.run(planned.tasks[0], planned.inputs, on_step)
    drawn = [(file, file.picture) for file in result.encoded if file.picture]
    others = [file for file in result.encoded if not file.picture]
    files = [*(file for file, _ in drawn), *(_preview(file) for file, _ in drawn), *others]
    paths = save(settings.output, files)
    images = [outcome.ImageResult(path=path, **dict(made)) for (_, made), path in zip(drawn, paths, strict=False)]
    Index(settings).add(images, result.model, beside=paths[len(drawn) :])
    for number, (_, picture) in enumerate(drawn):
        OUT.print(f"{picture.label}: {paths[number]}")
        OUT.print(f"preview: {paths[len(drawn) + number]}")
        if picture.alpha is not None:
            OUT.print(f"alpha: {describe(picture.alpha)}")
        if picture.reason:
            ERR.print(f"[yellow]{picture.verdict}:[/yellow] {picture.reason}")
    for latent in paths[2 * len(drawn) :]:
        OUT.print(f"latent: {latent}")
    OUT.print(f"{result.model} on {result.device}, {result.timings.total:.1f} s")
    for warning in result.warnings:
        ERR.print(f"[yellow]warning:[/yellow] {warning}")
    return paths[: len(drawn)]


def _preview(file: outcome.EncodedFile) -> outcome.EncodedFile:
    """The picture on a checkerboard, to go beside it: for viewers that show transparency as black."""
    from layerdiffuse_mcp.images.preview import preview
    from layerdiffuse_mcp.images.read import read_picture

    with io.BytesIO(file.data) as data:
        data.name = file.name
        made = preview([read_picture(data).rgba])
    return outcome.EncodedFile(name=Path(file.name).stem + PREVIEW_SUFFIXES[made.mime_type], data=made.data)


def _shown(value: object) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, list | tuple) else str(value)


def _held(output: Path) -> str:
    """How many pictures lie in the output folder, and how much room all takes there."""
    from layerdiffuse_mcp.outputs.folder import contents

    count, size = contents(output, PICTURE_SUFFIXES)
    return f"{count} picture{'s' * (count != 1)}, {in_words(size)}; to delete older ones: {CLEAN}"


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _writable(folder: Path) -> str:
    return "writable" if os.access(_existing(folder), os.W_OK) else "NOT writable: set LAYERDIFFUSE_OUTPUT_DIR"
