"""Pictures already made: look at their alpha, put them together. No model is needed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import anyio
import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, ContentBlock, TextContent
from pydantic import BaseModel, Field

from layerdiffuse_mcp.api.fields import Omittable, OneOf
from layerdiffuse_mcp.api.layers import COMPOSED, MAX_LAYERS, Canvas, Options, PlacedLayer
from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.plan import GivenPicture
from layerdiffuse_mcp.errors import LayerDiffuseError
from layerdiffuse_mcp.images import tasks
from layerdiffuse_mcp.images.describe import describe
from layerdiffuse_mcp.images.tasks import ComposeTask, InspectTask, PictureTask, ResultT
from layerdiffuse_mcp.jobs.job import Job
from layerdiffuse_mcp.jobs.queue import HEARTBEAT
from layerdiffuse_mcp.outputs.compositions import save_composition
from layerdiffuse_mcp.server.calls import Reporter
from layerdiffuse_mcp.server.results import Alpha, alpha_facts, image_content, image_uri, link_to, structured
from layerdiffuse_mcp.server.services import Keep, Services, services
from layerdiffuse_mcp.server.tools.parameters import Preview, file_field
from layerdiffuse_mcp.wording import printable

if TYPE_CHECKING:
    from layerdiffuse_mcp.images.composition import Kept

NAME = "composition"


class ComposeOutput(Options):
    """What file is made."""

    format: Omittable[
        Annotated[
            str,
            OneOf(COMPOSED, "format"),
            Field(description="psd and ora keep named layers; jpg is opaque; default png, or as source"),
        ]
    ] = None
    name: Annotated[str, Field(max_length=100, description="Beginning of the file's name")] = NAME
    preview: Preview = True
    metadata: Annotated[
        str,
        OneOf(("full", "none"), "metadata"),
        Field(description="full keeps the composition, by file names and hashes, for source; none does not"),
    ] = "full"


class PlacedFacts(BaseModel):
    """A layer on the finished canvas; it may lie partly outside."""

    name: str
    x: int
    y: int
    width: int
    height: int
    visible: bool


class Composed(BaseModel):
    """A composition on disk."""

    path: str
    uri: str
    width: int
    height: int
    layers: list[PlacedFacts] = Field(description="The lowest first, a background too; pixels of the finished canvas")
    alpha: Alpha | None = None
    kept_in: Omittable[str] = Field(default=None, description="Keeps the composition of a psd: leave it there")
    notes: list[str]


class Inspected(BaseModel):
    """What a picture holds."""

    path: str
    format: str
    width: int
    height: int
    has_alpha: bool
    alpha: Alpha
    halo: str
    notes: list[str]
    recipe: dict[str, Any] | None = None
    parameters: str | None = None


async def compose_layers(
    ctx: Context[Services],
    layers: Annotated[
        list[PlacedLayer],
        Field(
            max_length=MAX_LAYERS,
            description="Pictures to put together, the lowest first; with source, further ones on top",
            examples=[
                [
                    {"image": "scene.png"},
                    {"image": "lamp.png", "name": "lamp", "anchor": "bottom", "width": 300, "shadow": {"blur": 20}},
                    {"image": "glow.png", "x": 40, "y": 96, "blend": "screen", "opacity": 0.7},
                ]
            ],
        ),
    ] = [],  # noqa: B006 - nobody changes it
    source: Omittable[
        Annotated[str, file_field("A png, ora or psd that this tool made: its composition is put together again")]
    ] = None,
    replace: Annotated[
        dict[str, dict[str, Any]],
        Field(
            max_length=MAX_LAYERS,
            description="With source: layers to change, by name; each with the fields of a layer that are to be others",
            examples=[{"lamp": {"image": "blue-lamp.png"}, "glow": {"visible": False}}],
        ),
    ] = {},  # noqa: B006
    canvas: Omittable[
        Annotated[
            Canvas,
            Field(description="Size, trimming and padding of the result", examples=[{"size": "1200x630"}]),
        ]
    ] = None,
    background: Omittable[
        Annotated[str, file_field("What lies below: a colour as #0a3d62, a path or an image id; default: nothing")]
    ] = None,
    output: Omittable[
        Annotated[ComposeOutput, Field(description="What file is made", examples=[{"format": "psd", "name": "poster"}])]
    ] = None,
) -> Annotated[CallToolResult, Composed]:
    """Put finished pictures together exactly, pixel for pixel: placed, scaled, turned, tinted, blended, with shadows.
    Also trims, pads, converts and flattens one picture. The file keeps the composition, so that source and replace
    change one layer of it later. Returns the file's path, every layer's name and rectangle, and what the alpha holds.
    """
    known = services(ctx)
    wished = output or ComposeOutput()

    def task(keep: Keep) -> ComposeTask:
        from layerdiffuse_mcp.images.composition import Wanted

        before = _source(known, source) if source else None
        wanted = Wanted.of(layers, canvas, background, before.kept if before else None, replace)
        return wanted.task(
            lambda given: known.picture(given, keep),
            lambda picture: _found(known, picture, before.path.parent if before else None, keep),
            suffix=f".{wished.format}" if wished.format else before.path.suffix.lower() if before else ".png",
            preview=wished.preview,
            keep=wished.metadata == "full",
            max_pixels=known.settings.max_pixels,
        )

    with known.contents.borrowing() as keep:
        asked = await anyio.to_thread.run_sync(task, keep)
        composed = await _done(ctx, asked)
    return _answer(composed, asked, *await _recorded(known, composed, wished.name, asked.suffix))


async def inspect_image(
    ctx: Context[Services],
    image: Annotated[str, file_field("Path or image id of a picture")],
    background: Annotated[
        str, Field(max_length=50, description="What the preview is shown on: a colour or checkerboard")
    ] = "checkerboard",
    preview: Preview = True,
) -> Annotated[CallToolResult, Inspected]:
    """Tell what a picture's alpha holds, its bounding box, halo and embedded recipe, and show it on a background."""
    known = services(ctx)

    def copied(keep: Keep) -> tuple[str, Path]:
        with known.readable(image) as opened:
            return opened.shown, keep(opened)

    with known.contents.borrowing() as keep:
        shown, path = await anyio.to_thread.run_sync(copied, keep)
        held = await _done(ctx, InspectTask(path, background, preview, known.settings.max_pixels))
    found = Inspected(
        path=shown, format=held.format, width=held.width, height=held.height, has_alpha=held.has_alpha,
        alpha=Alpha.model_validate(held.alpha.model_dump(mode="json")), halo=held.halo, notes=list(held.notes),
        recipe=held.recipe, parameters=held.parameters,
    )  # fmt: skip
    lines = [
        f"{found.path} ({found.format}, {found.width}x{found.height}): {describe(held.alpha)}; {found.halo}.",
        f"Visible box: {found.alpha.bbox or 'none'}.",
        "It holds the recipe it was drawn by." if found.recipe else "It holds no recipe.",
    ]
    lines += [f"The attached picture is a small preview on {background}."] if held.preview else []
    lines += found.notes
    content: list[ContentBlock] = [TextContent(type="text", text="\n".join(lines))]
    content += [image_content(held.preview)] if held.preview else []
    return CallToolResult(content=content, structured_content=structured(found))


async def _done(ctx: Context[Services], task: PictureTask[ResultT]) -> ResultT:
    """The task's result, from the room; the client hears how far it is after every change and once a heartbeat."""
    tell = Reporter(ctx)
    latest = Progress(fraction=0.0, message="starting")
    changed = anyio.Event()
    result: ResultT | LayerDiffuseError | None = None

    def report(progress: Progress) -> None:
        nonlocal latest
        latest = progress
        changed.set()

    async def keep_telling() -> None:
        nonlocal changed
        while True:
            with anyio.move_on_after(HEARTBEAT):
                await changed.wait()
            changed = anyio.Event()
            await tell(latest)

    async with anyio.create_task_group() as group:
        group.start_soon(keep_telling)
        try:
            result = await services(ctx).pictures.run(task, report)
        except LayerDiffuseError as error:  # raised below, outside of the group, which would wrap it
            result = error
        group.cancel_scope.cancel()
    if isinstance(result, LayerDiffuseError):
        raise result
    assert result is not None
    return result


class _Source(NamedTuple):
    path: Path
    kept: "Kept"


def _source(known: Services, given: str) -> _Source:
    """A composition that was made before, and the file it is of; of a PSD it lies beside."""
    from layerdiffuse_mcp.images.composition import kept_by

    with known.readable(given) as opened:
        limit = known.settings.max_pixels
        kept = kept_by(opened.file, opened.path, lambda path: known.readable(str(path)).file, limit)
        return _Source(opened.path, kept)


def _found(known: Services, picture: GivenPicture, folder: Path | None, keep: Keep) -> Path:
    """A copy of a picture that a record names: beside the composition, else anywhere that may be read."""
    name = Path(picture.name).name
    return known.find(picture.model_copy(update={"name": str(folder / name) if folder else name}), keep)


async def _recorded(known: Services, composed: tasks.Composed, name: str, suffix: str) -> tuple[Job, Path | None]:
    """The composition on disk, as a job that has ended: its picture has an id. And the file beside it, if any."""
    job: Job | None = None
    kept_in: Path | None = None
    with anyio.CancelScope(shield=True):  # a file that is on disk is announced
        made, kept_in = await anyio.to_thread.run_sync(save_composition, known.settings.output, composed, name, suffix)
        job = known.jobs.record("compose_layers", Outcome(images=(made,), warnings=composed.notes))
        await anyio.to_thread.run_sync(known.jobs.index.add, [made], "", job.id, [kept_in] if kept_in else [])
    assert job is not None
    return job, kept_in


def _answer(composed: tasks.Composed, task: ComposeTask, job: Job, kept_in: Path | None) -> CallToolResult:
    made = job.image(1)
    assert made is not None
    uri = image_uri(job, 1)
    facts = Composed(
        path=str(made.path), uri=uri, width=made.width, height=made.height,
        layers=[PlacedFacts(**vars(layer)) for layer in composed.layers],
        alpha=alpha_facts(made.alpha), kept_in=str(kept_in) if kept_in else None, notes=list(composed.notes),
    )  # fmt: skip
    count = f"{len(composed.layers)} layer{'s' * (len(composed.layers) != 1)}"
    lines = [f"Composed {count}: {made.path} ({made.width}x{made.height}): {describe(composed.alpha)}"]
    lines.append("Layers, the lowest first, at x,y: " + "; ".join(_line_of(layer) for layer in composed.layers) + ".")
    lines += ["The attached picture is a small preview on a checkerboard."] if composed.preview else []
    if composed.record is not None:
        change = f'replace={{"{printable(task.layers[-1].name)}": {{...}}}}'
        lines.append(f'To change one layer, call compose_layers with source="{made.path}" and {change}.')
    lines += composed.notes
    content: list[ContentBlock] = [TextContent(type="text", text="\n".join(lines))]
    content += [image_content(composed.preview)] if composed.preview else []
    content.append(link_to(made.path, uri))
    return CallToolResult(content=content, structured_content=structured(facts))


def _line_of(layer: tasks.Placed) -> str:
    hidden = "" if layer.visible else ", hidden"
    return f"{printable(layer.name)} {layer.x},{layer.y} ({layer.width}x{layer.height}{hidden})"
