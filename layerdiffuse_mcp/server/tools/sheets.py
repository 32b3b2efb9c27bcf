"""Sprite sheets of pictures that exist, with their atlas."""

import re
import secrets
from datetime import datetime
from typing import Annotated

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import BaseModel, ConfigDict, Field

from layerdiffuse_mcp.api.fields import Omittable, OneOf
from layerdiffuse_mcp.api.outcome import EncodedFile, PictureFacts
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images import tasks
from layerdiffuse_mcp.images.choices import ANCHORS, FITS, MAX_CELL
from layerdiffuse_mcp.images.describe import describe
from layerdiffuse_mcp.images.tasks import MakeSheetTask, SheetOptions
from layerdiffuse_mcp.outputs.names import dated, slug
from layerdiffuse_mcp.server.finished import PictureOutput, done, picture_result, recorded
from layerdiffuse_mcp.server.results import image_uri
from layerdiffuse_mcp.server.services import Keep, Services, services
from layerdiffuse_mcp.server.tools.parameters import file_field
from layerdiffuse_mcp.wording import quoted

MAX_PICTURES = 256
_CELL = re.compile(r"\s*([0-9]{1,5})\s*[xX*]\s*([0-9]{1,5})\s*")


class SheetPicture(BaseModel):
    """A picture of the sheet and its name in the atlas."""

    model_config = ConfigDict(extra="forbid")

    image: Annotated[str, file_field("Path or image id of a picture")]
    name: Annotated[str, Field(max_length=100, description="Name in the atlas; default: the file's")] = ""


class SheetEdges(BaseModel):
    """How pictures are cleaned and kept apart."""

    model_config = ConfigDict(extra="forbid")

    trim: Annotated[bool, Field(description="Cut each picture to what is visible, first")] = True
    defringe: Annotated[bool, Field(description="Give soft edges the colour of the solid parts beside them")] = False
    padding: Annotated[int, Field(ge=0, le=256, description="Transparent pixels between cells")] = 2
    extrude: Annotated[int, Field(ge=0, le=16, description="Times that a frame's outermost pixels are repeated")] = 0


class SheetFrame(BaseModel):
    """Where a picture lies in the sheet, in pixels."""

    name: str
    x: int
    y: int
    width: int
    height: int


class Sheet(BaseModel):
    """A sheet on disk and its atlas files."""

    path: str
    uri: str
    width: int
    height: int
    cell: list[int] = Field(description="Width and height of a cell")
    columns: int
    margin: int = Field(description="Pixels before the first cell, for loaders that cut a sheet into cells")
    spacing: int = Field(description="Pixels between two cells, likewise")
    atlas: str = Field(description="JSON (Hash): frames by name; PixiJS and Phaser read it")
    atlas_array: str = Field(description="JSON (Array): frames in order")
    frames: list[SheetFrame]
    notes: list[str]


async def make_sheet(
    ctx: Context[Services],
    images: Annotated[
        list[SheetPicture],
        Field(
            min_length=1,
            max_length=MAX_PICTURES,
            description="The pictures, in the order of their cells, row by row; names are unique",
            examples=[[{"image": "walk-1.png", "name": "walk-1"}, {"image": "job-1a2b3c4d-1"}]],
        ),
    ],
    cell: Omittable[
        Annotated[
            str,
            Field(
                max_length=20,
                description=f'Width x height of a cell in pixels, at most {MAX_CELL} each, as in "128x128"; default: '
                "the largest picture's",
                examples=["128x128"],
            ),
        ]
    ] = None,
    columns: Omittable[
        Annotated[int, Field(ge=1, le=MAX_PICTURES, description="Cells in a row; default: about as many as rows")]
    ] = None,
    anchor: Annotated[
        str, OneOf(tuple(ANCHORS), "anchor"), Field(description="Where a picture lies in its cell; bottom for figures")
    ] = "center",
    fit: Annotated[
        str,
        OneOf(tuple(FITS), "fit"),
        Field(description="; ".join(f"{name}: {what}" for name, what in FITS.items())),
    ] = "shrink",
    edges: Omittable[
        Annotated[
            SheetEdges,
            Field(description="How pictures are cleaned and kept apart", examples=[{"padding": 4, "extrude": 1}]),
        ]
    ] = None,
    output: Omittable[
        Annotated[
            PictureOutput,
            Field(description="What file to make", examples=[{"name": "hero", "format": "webp"}]),
        ]
    ] = None,
) -> Annotated[CallToolResult, Sheet]:
    """Put pictures into the cells of one sprite sheet, with its atlas as JSON for Phaser, PixiJS and others.

    Returns one RGBA file, two atlas files beside it (frames by name, and in order), every picture's rectangle, and a
    preview with the cells numbered.
    """
    known = services(ctx)
    made_as, kept = output or PictureOutput(name="sheet"), edges or SheetEdges()
    options = SheetOptions(cell_size(cell), columns, anchor, fit, kept.trim, kept.defringe, kept.padding, kept.extrude)

    def task(keep: Keep) -> MakeSheetTask:
        from layerdiffuse_mcp.images.atlas import unique_names

        paths = tuple(known.picture(picture.image, keep) for picture in images)
        names = unique_names([given.name or path.stem for given, path in zip(images, paths, strict=True)])
        return MakeSheetTask(paths, names, options, f".{made_as.format}", made_as.preview, known.settings.max_pixels)

    with known.contents.borrowing() as keep:
        made = await done(ctx, await anyio.to_thread.run_sync(task, keep))
    now = datetime.now().astimezone()
    files = sheet_files(made, made_as.name, made_as.format, now)
    job, [sheet], [by_name, in_order] = await recorded(known, "make_sheet", files, made.notes, now)
    facts = Sheet(
        path=str(sheet.path), uri=image_uri(job, 1), width=made.width, height=made.height, cell=list(made.cell),
        columns=made.columns, margin=made.margin, spacing=made.spacing, atlas=by_name, atlas_array=in_order,
        frames=[_frame(frame) for frame in made.frames], notes=list(made.notes),
    )  # fmt: skip
    count = len(made.frames)
    lines = [
        f"Made a sheet of {count} picture{'s' * (count != 1)}: {sheet.path} ({made.width}x{made.height}, cells of "
        f"{made.cell[0]}x{made.cell[1]}, {made.columns} a row): {describe(made.alpha)}",
        f"Atlas, frames by name: {by_name}",
        f"Atlas, frames in order: {in_order}",
        *made.notes,
    ]
    return picture_result(job, sheet, lines, made.preview, facts)


def sheet_files(made: tasks.MadeSheet, name: str, format: str, now: datetime) -> list[EncodedFile]:
    """The sheet and its atlas in two forms, which name the sheet's file: its name is one that nobody else has."""
    from layerdiffuse_mcp.images.atlas import atlas_array, atlas_hash

    stem = f"{slug(name or 'sheet')}-{secrets.token_hex(3)}"
    image, size = f"{stem}.{format}", (made.width, made.height)
    on_disk = f"{dated(now)[1]}-{image}"
    facts = PictureFacts(role="blended", width=made.width, height=made.height, seed=0, alpha=made.alpha)
    return [
        EncodedFile(name=image, data=made.data, picture=facts),
        EncodedFile(name=f"{stem}.json", data=atlas_hash(made.frames, on_disk, size)),
        EncodedFile(name=f"{stem}-array.json", data=atlas_array(made.frames, on_disk, size)),
    ]


def cell_size(given: str | None) -> tuple[int, int] | None:
    """Width and height of a cell.

    Raises:
        InvalidRequest: it is no size, or too large.
    """
    if given is None:
        return None
    match = _CELL.fullmatch(given)
    sides = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(1 <= side <= MAX_CELL for side in sides):
        raise InvalidRequest(f'cell: {quoted(given)} is no size. Give width x height, 1 to {MAX_CELL} each: "128x128".')
    return sides


def _frame(frame: tasks.Frame) -> SheetFrame:
    x, y, width, height = frame.box
    return SheetFrame(name=frame.name, x=x, y=y, width=width, height=height)
