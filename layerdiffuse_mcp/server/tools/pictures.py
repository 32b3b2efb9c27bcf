"""Pictures already made: look at their alpha, put them together. No model is needed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, ContentBlock, TextContent
from pydantic import BaseModel, Field

from layerdiffuse_mcp.api.fields import METADATA, Omittable, OneOf
from layerdiffuse_mcp.api.layers import COMPOSED, MAX_LAYERS, Canvas, PlacedLayer
from layerdiffuse_mcp.api.plan import GivenPicture
from layerdiffuse_mcp.images import tasks
from layerdiffuse_mcp.images.describe import describe
from layerdiffuse_mcp.images.tasks import ComposeTask, InspectTask
from layerdiffuse_mcp.outputs.compositions import NAME, composition_files, name_for
from layerdiffuse_mcp.recipes.told import prompt_of, told
from layerdiffuse_mcp.server.finished import done, picture_result, recorded
from layerdiffuse_mcp.server.results import URI, Alpha, alpha_facts, image_content, image_uri, structured
from layerdiffuse_mcp.server.services import Keep, Services, services
from layerdiffuse_mcp.server.tools.parameters import PictureFile, Preview, file_field
from layerdiffuse_mcp.wording import printable

MOST_PARAMETERS = 2000
"""Characters of a parameter text that are repeated."""

if TYPE_CHECKING:
    from layerdiffuse_mcp.images.composition import Kept
    from layerdiffuse_mcp.outputs.undrawn import Undrawn


class ComposeOutput(PictureFile):
    """What file is made."""

    format: Omittable[
        Annotated[
            str,
            OneOf(COMPOSED, "format"),
            Field(description="psd and ora keep named layers; jpg is opaque; default png, or as source"),
        ]
    ] = None
    metadata: Annotated[
        str,
        OneOf(METADATA, "metadata"),
        Field(description="full keeps the composition, by file names and hashes, for source; none does not"),
    ] = "full"


class PlacedFacts(BaseModel):
    """A layer on the finished canvas; it may lie partly outside."""

    name: str = Field(description="What replace calls it")
    x: int = Field(description="Left edge, in pixels of the canvas; its shadow does not count")
    y: int = Field(description="Top edge")
    width: int = Field(description="In pixels")
    height: int = Field(description="In pixels")
    visible: bool = Field(description="Whether it is shown")


class Composed(BaseModel):
    """A composition on disk."""

    path: str = Field(description="Absolute path of the file")
    uri: str = Field(description=URI)
    width: int = Field(description="In pixels")
    height: int = Field(description="In pixels")
    layers: list[PlacedFacts] = Field(description="The lowest first, a background too; pixels of the finished canvas")
    alpha: Omittable[Alpha] = Field(default=None, description="What the alpha of the whole holds")
    kept_in: Omittable[str] = Field(default=None, description="Keeps the composition of a psd: leave it there")
    notes: tuple[str, ...] = Field(
        default=(), description="What was changed while pictures were read, and which layers are cut"
    )


class Inspected(BaseModel):
    """What a picture holds."""

    path: str = Field(description="Absolute path of the file")
    format: str = Field(description="What kind of file it is, by its content")
    width: int = Field(description="In pixels")
    height: int = Field(description="In pixels")
    has_alpha: bool = Field(description="Whether the file has an alpha channel, even if nothing shows through")
    alpha: Alpha = Field(description="What its alpha holds")
    halo: str = Field(description="Whether an old background's colour is left along its edge")
    notes: tuple[str, ...] = Field(default=(), description="What was changed while it was read")
    recipe: Omittable[dict[str, Any]] = Field(default=None, description="What draws it again, for redraw_image")
    parameters: Omittable[str] = Field(default=None, description="The parameter text that A1111 and Forge write")
    layers: Omittable[list[str]] = Field(
        default=None, description="Layers of the composition in it, the lowest first; compose_layers takes it as source"
    )


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
        Annotated[
            str,
            file_field(
                "A png, ora or psd that this tool made: its composition is put together again, on the same canvas, "
                "where layers lie at the x and y that were answered"
            ),
        ]
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

    def task(keep: Keep) -> tuple[ComposeTask, str]:
        from layerdiffuse_mcp.images.composition import Wanted

        before = _source(known, source) if source else None
        wanted = Wanted.of(layers, canvas, background, before.kept if before else None, replace)
        made = wanted.task(
            lambda given: known.picture(given, keep),
            lambda picture: _found(known, picture, before.path.parent if before else None, keep),
            suffix=f".{wished.format}" if wished.format else before.suffix if before else ".png",
            preview=wished.preview,
            keep=wished.metadata == "full",
            max_pixels=known.settings.max_pixels,
        )
        return made, name_for(wished.name, before.path if before else None)

    with known.contents.borrowing() as keep:
        asked, name = await anyio.to_thread.run_sync(task, keep)
        composed = await done(ctx, asked)
    files = composition_files(composed, name, asked.suffix)
    job, [made], beside = await recorded(known, "compose_layers", files, composed.notes)
    facts = Composed(
        path=str(made.path), uri=image_uri(job, 1), width=made.width, height=made.height,
        layers=[PlacedFacts(**vars(layer)) for layer in composed.layers],
        alpha=alpha_facts(made.alpha), kept_in=next(iter(beside), None), notes=composed.notes,
    )  # fmt: skip
    return picture_result(job, made, _lines_of(composed, asked, made.path), composed.preview, facts)


async def inspect_image(
    ctx: Context[Services],
    image: Annotated[str, file_field("Path or image id of a picture")],
    background: Annotated[
        str, Field(max_length=50, description="What the preview is shown on: a colour or checkerboard")
    ] = "checkerboard",
    preview: Preview = True,
) -> Annotated[CallToolResult, Inspected]:
    """Inspect a picture, ours or another, and change nothing. Returns what its alpha holds, its bounding box, halo and
    embedded recipe, and shows it on a background.
    """
    known = services(ctx)

    def copied(keep: Keep) -> tuple[str, Path]:
        with known.readable(image) as opened:
            return opened.shown, keep(opened)

    def undrawn() -> "Undrawn":
        with known.readable(image) as opened:
            return known.undrawn(opened)

    with known.contents.borrowing() as keep:
        shown, path = await anyio.to_thread.run_sync(copied, keep)
        held = await done(ctx, InspectTask(path, background, preview, known.settings.max_pixels))
    other = None if held.recipe else await anyio.to_thread.run_sync(undrawn)
    found = Inspected(
        path=shown, format=held.format, width=held.width, height=held.height, has_alpha=held.has_alpha,
        alpha=Alpha.model_validate(held.alpha.model_dump(mode="json")), halo=held.halo, notes=held.notes,
        recipe=held.recipe, parameters=held.parameters, layers=[*(other.layers if other else held.layers)] or None,
    )  # fmt: skip
    lines = [
        f"{found.path} ({found.format}, {found.width}x{found.height}): {describe(held.alpha)}; {found.halo}.",
        f"Visible box: {found.alpha.bbox or 'none'}.",
        _holds(found, other.instead if other else None),
    ]
    lines += [f"The attached picture is a small preview on {background}."] if held.preview else []
    lines += found.notes
    content: list[ContentBlock] = [TextContent(type="text", text="\n".join(lines))]
    content += [image_content(held.preview)] if held.preview else []
    return CallToolResult(content=content, structured_content=structured(found))


def _holds(found: Inspected, instead: str | None) -> str:
    """What a picture can be made again from."""
    if found.recipe:
        drawn = ", ".join(filter(None, (prompt_of(found.recipe), told(found.recipe, whole=True))))
        return f"It holds the recipe it was drawn by: {drawn}." if drawn else "It holds the recipe it was drawn by."
    if found.parameters:
        return f"It holds a parameter text, by which redraw_image draws: {printable(found.parameters, MOST_PARAMETERS)}"
    if not found.layers:
        return f"It holds no recipe. {instead or ''}".rstrip()
    names = ", ".join(printable(name) for name in found.layers)
    return f"It holds a composition: {names}. compose_layers changes it, with this file as source."


class _Source(NamedTuple):
    path: Path
    kept: "Kept"
    suffix: str


def _source(known: Services, given: str) -> _Source:
    """A composition that was made before, and the file it is of; of a PSD it lies beside."""
    from layerdiffuse_mcp.images.composition import kept_by

    with known.readable(given) as opened:
        limit = known.settings.max_pixels
        kept, suffix = kept_by(opened.file, opened.path, lambda path: known.readable(str(path)).file, limit)
        return _Source(opened.path, kept, suffix)


def _found(known: Services, picture: GivenPicture, folder: Path | None, keep: Keep) -> Path:
    """A copy of a picture that a record names: beside the composition, else anywhere that may be read."""
    name = Path(picture.name).name
    return known.find(picture.model_copy(update={"name": str(folder / name) if folder else name}), keep)


def _lines_of(composed: tasks.Composed, task: ComposeTask, path: Path) -> list[str]:
    """A composition in lines."""
    count = f"{len(composed.layers)} layer{'s' * (len(composed.layers) != 1)}"
    lines = [f"Composed {count}: {path} ({composed.width}x{composed.height}): {describe(composed.alpha, NAME)}"]
    lines.append("Layers, the lowest first, at x,y: " + "; ".join(_line_of(layer) for layer in composed.layers) + ".")
    if composed.record is not None:
        source, name = (json.dumps(text, ensure_ascii=False) for text in (str(path), task.layers[-1].name))
        lines.append(f"To change one layer, call compose_layers with source={source} and replace={{{name}: {{...}}}}.")
    return [*lines, *composed.notes]


def _line_of(layer: tasks.Placed) -> str:
    hidden = "" if layer.visible else ", hidden"
    return f"{printable(layer.name)} {layer.x},{layer.y} ({layer.width}x{layer.height}{hidden})"
