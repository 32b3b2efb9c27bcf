"""Pictures already made: look at their alpha, put them together. No model is needed."""

from pathlib import Path
from typing import Annotated, Any, Literal

import anyio
import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, ContentBlock, TextContent
from pydantic import BaseModel, ConfigDict, Field

from layerdiffuse_mcp.api.fields import Omittable
from layerdiffuse_mcp.api.outcome import EncodedFile, ImageResult, Outcome, Progress
from layerdiffuse_mcp.errors import ImageError, InvalidRequest, LayerDiffuseError
from layerdiffuse_mcp.images import tasks
from layerdiffuse_mcp.images.describe import describe
from layerdiffuse_mcp.images.tasks import ComposeTask, InspectTask, PictureTask, PlacedFile, ResultT
from layerdiffuse_mcp.jobs.job import Job
from layerdiffuse_mcp.jobs.queue import HEARTBEAT
from layerdiffuse_mcp.outputs.names import file_name
from layerdiffuse_mcp.outputs.writer import save
from layerdiffuse_mcp.server.calls import Reporter
from layerdiffuse_mcp.server.results import Alpha, alpha_facts, image_content, image_uri, link_to, structured
from layerdiffuse_mcp.server.services import Keep, Services, services
from layerdiffuse_mcp.server.tools.parameters import Preview, file_field

MAX_LAYERS = 64


class PlacedLayer(BaseModel):
    """A picture and where it goes; x and y place its top left corner."""

    model_config = ConfigDict(extra="forbid")

    image: Annotated[str, file_field("Path or image id of a picture")]
    name: Annotated[str, Field(max_length=100, description="Layer name in psd and ora; default: the file's")] = ""
    x: Annotated[int, Field(ge=-30_000, le=30_000, description="Pixels from the canvas' left edge")] = 0
    y: Annotated[int, Field(ge=-30_000, le=30_000, description="Pixels from the canvas' top edge")] = 0
    scale: Annotated[float, Field(gt=0, le=64, allow_inf_nan=False, description="Factor of its size")] = 1
    opacity: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, description="0 is invisible, 1 as it is")] = 1


class Composed(BaseModel):
    """A composition on disk."""

    path: str
    uri: str
    width: int
    height: int
    layers: int
    alpha: Alpha | None = None
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
            min_length=1,
            max_length=MAX_LAYERS,
            description="Pictures to put together, the lowest first",
            examples=[[{"image": "scene.png"}, {"image": "apple.png", "x": 40, "y": 96, "scale": 0.5}]],
        ),
    ],
    width: Omittable[
        Annotated[
            int, Field(ge=1, le=30_000, description="Canvas width in pixels, with height; default: fits the layers")
        ]
    ] = None,
    height: Omittable[Annotated[int, Field(ge=1, le=30_000, description="Canvas height in pixels, with width")]] = None,
    background: Omittable[
        Annotated[str, file_field("What lies below: a colour, a path or an image id; default: nothing")]
    ] = None,
    trim: Annotated[bool, Field(description="Cut the result to what is visible")] = False,
    pad: Annotated[int, Field(ge=0, le=4096, description="Transparent pixels to add on every side")] = 0,
    format: Annotated[
        Literal["png", "webp", "psd", "ora"], Field(description="Kind of file; psd and ora keep the named layers")
    ] = "png",
    name: Annotated[str, Field(max_length=100, description="Beginning of the file's name")] = "composition",
    preview: Preview = True,
) -> Annotated[CallToolResult, Composed]:
    """Put finished pictures together exactly, pixel for pixel, and export them. Also trims, pads, scales, flattens."""
    known = services(ctx)
    if (width is None) != (height is None):
        raise InvalidRequest("width and height of the canvas go together: give both or neither.")
    canvas = (width, height) if width is not None and height is not None else None

    def task(keep: Keep) -> ComposeTask:
        paths = [known.picture(layer.image, keep) for layer in layers]
        placed = tuple(
            PlacedFile(path, given.name or path.stem, given.x, given.y, given.scale, given.opacity)
            for given, path in zip(layers, paths, strict=True)
        )
        lowest = _background(known, background, keep)
        return ComposeTask(placed, canvas, lowest, trim, pad, f".{format}", preview, known.settings.max_pixels)

    with known.contents.borrowing() as keep:
        composed = await _done(ctx, await anyio.to_thread.run_sync(task, keep))
    job = await _recorded(known, composed, name, format)
    made = job.outcome.images[0] if job.outcome else None
    assert made is not None
    uri = image_uri(job, 1)
    facts = Composed(
        path=str(made.path), uri=uri, width=made.width, height=made.height, layers=composed.layers,
        alpha=alpha_facts(made.alpha), notes=list(composed.notes),
    )  # fmt: skip
    count = f"{composed.layers} layer{'s' * (composed.layers != 1)}"
    lines = [f"Composed {count}: {made.path} ({made.width}x{made.height}): {describe(composed.alpha)}"]
    lines += ["The attached picture is a small preview on a checkerboard."] if composed.preview else []
    lines += composed.notes
    content: list[ContentBlock] = [TextContent(type="text", text="\n".join(lines))]
    content += [image_content(composed.preview)] if composed.preview else []
    content.append(link_to(made.path, uri))
    return CallToolResult(content=content, structured_content=structured(facts))


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


async def _recorded(known: Services, composed: tasks.Composed, name: str, suffix: str) -> Job:
    """The composition on disk, as a job that has ended: its picture has an id."""
    job: Job | None = None
    with anyio.CancelScope(shield=True):  # a file that is on disk is announced
        file = EncodedFile(name=file_name(name, 0, "composed", f".{suffix}"), data=composed.data)
        [path] = await anyio.to_thread.run_sync(save, known.settings.output, [file])
        made = ImageResult(
            role="blended", path=path, width=composed.width, height=composed.height, seed=0, alpha=composed.alpha
        )
        job = known.jobs.record("compose_layers", Outcome(images=(made,), warnings=composed.notes))
        await anyio.to_thread.run_sync(known.jobs.index.add, [made], "", job.id)
    assert job is not None
    return job


def _background(known: Services, given: str | None, keep: Keep) -> Path | tasks.Colour | None:
    """A colour, or the path of a picture, or neither."""
    from layerdiffuse_mcp.images.colour import BareDigits, background_colour

    if given is None:
        return None
    try:
        colour = background_colour(given)
    except InvalidRequest as no_colour:
        try:
            return known.picture(given, keep)
        except ImageError as no_picture:
            raise no_colour if isinstance(no_colour, BareDigits) else no_picture from None
    if colour is None:
        raise InvalidRequest("background: give a colour such as white or #ff8800, a path or an image id.")
    return colour
