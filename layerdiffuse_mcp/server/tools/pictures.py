"""Pictures already made: look at their alpha, put them together. No model is needed."""

import contextlib
from pathlib import PurePath
from typing import Annotated, Any, Literal

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult, ContentBlock, ImageContent, TextContent
from pydantic import BaseModel, ConfigDict, Field

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.outcome import EncodedFile, ImageResult, Outcome
from layerdiffuse_mcp.server.access import OpenedFile
from layerdiffuse_mcp.server.declare import READS, WRITES, Declaration
from layerdiffuse_mcp.server.results import Alpha, alpha_facts, image_uri, link_to, preview_image, structured
from layerdiffuse_mcp.server.services import Services, services
from layerdiffuse_mcp.server.tools.parameters import Preview, named
from layerdiffuse_mcp.settings import Settings

MAX_LAYERS = 64
MAX_EMBEDDED = 20_000
"""Characters of embedded text that a result may carry."""


class PlacedLayer(BaseModel):
    """A picture and where it goes; x and y place its top left corner."""

    model_config = ConfigDict(extra="forbid")

    image: Annotated[str, named("Path or image id")]
    name: Annotated[str, Field(max_length=100)] = ""
    x: Annotated[int, Field(ge=-30_000, le=30_000)] = 0
    y: Annotated[int, Field(ge=-30_000, le=30_000)] = 0
    scale: Annotated[float, Field(gt=0, le=64, allow_inf_nan=False)] = 1
    opacity: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1


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
    layers: Annotated[list[PlacedLayer], Field(min_length=1, max_length=MAX_LAYERS, description="The lowest first")],
    width: Annotated[int, Field(ge=1, le=30_000, description="Canvas; default: fits")] | None = None,
    height: Annotated[int, Field(ge=1, le=30_000, description="Canvas")] | None = None,
    background: Annotated[str, named("Colour, path or image id; default: none")] | None = None,
    trim: Annotated[bool, Field(description="Cut to what is visible")] = False,
    pad: Annotated[int, Field(ge=0, le=4096, description="Pixels on every side")] = 0,
    format: Annotated[Literal["png", "webp", "psd", "ora"], Field(description="psd, ora keep named layers")] = "png",
    name: Annotated[str, Field(max_length=100, description="For the file's name")] = "composition",
    preview: Preview = True,
) -> CallToolResult:
    """Put finished pictures together exactly, pixel for pixel, and export them. Also trims, pads, scales, flattens."""
    known = services(ctx)
    if (width is None) != (height is None):
        raise InvalidRequest("width and height of the canvas go together: give both or neither.")
    canvas = (width, height) if width is not None and height is not None else None

    def work() -> tuple[ImageResult, list[str], ImageContent | None]:
        from layerdiffuse_mcp.images.alpha import alpha_facts as facts
        from layerdiffuse_mcp.images.compose import Layer, arrange, flatten
        from layerdiffuse_mcp.images.export import export
        from layerdiffuse_mcp.outputs.names import file_name
        from layerdiffuse_mcp.outputs.writer import save

        with contextlib.ExitStack() as open_files:
            files = [open_files.enter_context(known.readable(layer.image)) for layer in layers]
            colour, below = _background(known, background, open_files)
            _check_size(
                [*files, *([below] if below else [])], [layer.scale for layer in layers] + [1.0], known.settings
            )
            notes: list[str] = []
            placed = [
                Layer(_read(file, known.settings, notes), given.name or PurePath(file.shown).stem, given.x, given.y,
                      given.scale, given.opacity)
                for given, file in zip(layers, files, strict=True)
            ]  # fmt: skip
            lowest = _read(below, known.settings, notes) if below else colour
        composition = arrange(placed, canvas, lowest, trim=trim, pad=pad)
        flat = flatten(composition)
        file = EncodedFile(name=file_name(name, 0, "composed", f".{format}"), data=export(composition, format))
        [path] = save(known.settings.output, [file])
        made = ImageResult(
            role="blended", path=path, width=composition.width, height=composition.height, seed=0, alpha=facts(flat)
        )
        return made, notes, preview_image([flat]) if preview else None

    made, notes, shown = await anyio.to_thread.run_sync(work, limiter=known.pictures)
    job = known.jobs.record("compose_layers", Outcome(images=(made,), warnings=tuple(notes)))
    uri = image_uri(job, 1)
    facts = Composed(
        path=str(made.path), uri=uri, width=made.width, height=made.height, layers=len(layers),
        alpha=alpha_facts(made.alpha), notes=notes,
    )  # fmt: skip
    text = f"Composed {len(layers)} layers: {made.path} ({made.width}x{made.height}): {_words(made)}"
    lines = [text, *(["The attached picture is a small preview on a checkerboard."] if shown else []), *notes]
    content: list[ContentBlock] = [TextContent(type="text", text="\n".join(lines))]
    content += [shown] if shown else []
    content.append(link_to(made.path, uri))
    return CallToolResult(content=content, structured_content=structured(facts))


async def inspect_image(
    ctx: Context[Services],
    image: Annotated[str, named("Path or image id")],
    background: Annotated[str, Field(max_length=50, description="Colour or checkerboard")] = ("checkerboard"),
    preview: Preview = True,
) -> CallToolResult:
    """Tell what a picture's alpha holds, its bounding box, halo and embedded recipe, and show it on a background."""
    known = services(ctx)

    def work() -> tuple[Inspected, str, ImageContent | None]:
        from layerdiffuse_mcp.images import alpha
        from layerdiffuse_mcp.images.png import read_parameters, read_recipe
        from layerdiffuse_mcp.images.read import read_picture

        limit = known.settings.max_pixels
        with known.readable(image) as opened:
            shown_path, file = opened.shown, opened.file
            picture = read_picture(file, limit)
            recipe, parameters = read_recipe(file, limit), read_parameters(file, limit)
        facts, fringe = alpha.alpha_facts(picture.rgba), alpha.halo(picture.rgba)
        notes = list(picture.notes)
        if len(str(recipe)) > MAX_EMBEDDED or len(parameters or "") > MAX_EMBEDDED:
            recipe, parameters = None, None
            notes.append("the embedded recipe is too long to show")
        height, width = picture.rgba.shape[:2]
        found = Inspected(
            path=shown_path, format=picture.format, width=width, height=height, has_alpha=picture.has_alpha,
            alpha=Alpha.model_validate(facts.model_dump(mode="json")), halo=fringe.describe(), notes=notes,
            recipe=recipe, parameters=parameters,
        )  # fmt: skip
        shown = preview_image([picture.rgba], background) if preview else None
        return found, alpha.describe(facts), shown

    found, holds, shown = await anyio.to_thread.run_sync(work, limiter=known.pictures)
    lines = [
        f"{found.path} ({found.format}, {found.width}x{found.height}): {holds}; {found.halo}.",
        f"Visible box: {found.alpha.bbox or 'none'}.",
        "It holds the recipe it was drawn by." if found.recipe else "It holds no recipe.",
    ]
    lines += [f"The attached picture is a small preview on {background}."] if shown else []
    lines += found.notes
    content: list[ContentBlock] = [TextContent(type="text", text="\n".join(lines)), *([shown] if shown else [])]
    return CallToolResult(content=content, structured_content=structured(found))


def _background(
    known: Services, given: str | None, open_files: contextlib.ExitStack
) -> tuple[tuple[float, float, float] | None, OpenedFile | None]:
    """A colour, or an open picture, or neither."""
    from layerdiffuse_mcp.images.preview import CHECKERBOARD, background_colour

    if given is None:
        return None, None
    try:
        colour = background_colour(given) if given != CHECKERBOARD else None
    except InvalidRequest:
        return None, open_files.enter_context(known.readable(given))
    if colour is None:
        raise InvalidRequest("background: give a colour such as white or #ff8800, a path or an image id.")
    red, green, blue = (float(value) for value in colour)
    return (red, green, blue), None


def _check_size(files: list[OpenedFile], scales: list[float], settings: Settings) -> None:
    """Refuse what would not fit into memory, before any of it is decoded."""
    from layerdiffuse_mcp.images.read import opened

    total = 0.0
    for file, scale in zip(files, scales, strict=False):
        with opened(file.file, settings.max_pixels) as picture:
            total += picture.width * picture.height * max(1.0, scale * scale)
    if total > settings.max_pixels:
        raise InvalidRequest(
            f"The layers have {total / 1e6:.0f} million pixels together, and at most {settings.max_pixels / 1e6:g} "
            "million are put together. Give fewer or smaller ones."
        )


def _read(file: OpenedFile, settings: Settings, notes: list[str]) -> Any:
    from layerdiffuse_mcp.images.read import read_picture

    picture = read_picture(file.file, settings.max_pixels)
    notes += [f"{PurePath(file.shown).name}: {note}" for note in picture.notes]
    return picture.rgba


def _words(made: ImageResult) -> str:
    from layerdiffuse_mcp.images.alpha import describe

    return describe(made.alpha) if made.alpha else "opaque"


TOOLS = (
    Declaration(compose_layers, "Put layers together", WRITES, Composed, levels=1),
    Declaration(inspect_image, "Look at a picture", READS, Inspected, levels=1),
)
