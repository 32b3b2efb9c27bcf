"""Sprite sheets of pictures that exist, with their atlas."""

from datetime import datetime
from typing import Annotated, ClassVar

import anyio.to_thread
from mcp.server.mcpserver import Context
from mcp_types import CallToolResult
from pydantic import BaseModel, Field

from layerdiffuse_mcp.api.cells import MAX_CELL, CellAnchor, CellFit, Defringe, Trim, cell_size
from layerdiffuse_mcp.api.fields import Omittable
from layerdiffuse_mcp.images import tasks
from layerdiffuse_mcp.images.describe import describe
from layerdiffuse_mcp.images.tasks import MakeSheetTask, SheetOptions
from layerdiffuse_mcp.server.finished import done, picture_result, recorded
from layerdiffuse_mcp.server.results import URI, image_uri
from layerdiffuse_mcp.server.services import Keep, Services, services
from layerdiffuse_mcp.server.tools.parameters import Described, PictureFile, file_field

MAX_PICTURES = 256


class SheetPicture(Described):
    """A picture of the sheet and its name in the atlas."""

    alone: ClassVar[str | None] = "image"

    image: Annotated[str, file_field("Path or image id of a picture")]
    name: Annotated[
        str,
        Field(
            max_length=100,
            description="Name in the atlas; default: what it was drawn as, else the file's",
        ),
    ] = ""


class SheetEdges(Described):
    """How pictures are cleaned and kept apart."""

    trim: Trim = True
    defringe: Defringe = False
    padding: Annotated[int, Field(ge=0, le=256, description="Transparent pixels between cells")] = 2
    extrude: Annotated[int, Field(ge=0, le=16, description="Times that a frame's outermost pixels are repeated")] = 0


class SheetFrame(BaseModel):
    """Where a picture lies in the sheet, in pixels."""

    name: str = Field(description="Its name in the atlas")
    x: int = Field(description="Left edge")
    y: int = Field(description="Top edge")
    width: int = Field(description="Of what is visible of it")
    height: int = Field(description="Likewise")


class Sheet(BaseModel):
    """A sheet on disk and its atlas files."""

    path: str = Field(description="Absolute path of the sheet")
    uri: str = Field(description=URI)
    width: int = Field(description="In pixels")
    height: int = Field(description="In pixels")
    cell: list[int] = Field(description="Width and height of a cell")
    columns: int = Field(description="Cells in a row")
    margin: int = Field(description="Pixels before the first cell, for loaders that cut a sheet into cells")
    spacing: int = Field(description="Pixels between two cells, likewise")
    atlas: str = Field(description="JSON (Hash): frames by name; PixiJS and Phaser read it")
    atlas_array: str = Field(description="JSON (Array): frames in order")
    frames: list[SheetFrame] = Field(description="Every picture, in the order given")
    notes: tuple[str, ...] = Field(default=(), description="What was changed while the pictures were read")


async def make_sheet(
    ctx: Context[Services],
    images: Annotated[
        list[SheetPicture],
        Field(
            min_length=1,
            max_length=MAX_PICTURES,
            description="In the order of their cells, row by row; a name that comes again gets a number",
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
            ),
        ]
    ] = None,
    columns: Omittable[
        Annotated[int, Field(ge=1, le=MAX_PICTURES, description="Cells in a row; default: about as many as rows")]
    ] = None,
    anchor: CellAnchor = "center",
    fit: CellFit = "shrink",
    edges: Omittable[
        Annotated[
            SheetEdges,
            Field(description="How pictures are cleaned and kept apart", examples=[{"padding": 4, "extrude": 1}]),
        ]
    ] = None,
    output: Omittable[
        Annotated[
            PictureFile,
            Field(description="What file to make", examples=[{"name": "hero", "format": "webp"}]),
        ]
    ] = None,
) -> Annotated[CallToolResult, Sheet]:
    """Put pictures into the cells of one sprite sheet, with its atlas as JSON for Phaser, PixiJS and others.

    Returns one RGBA file, two atlas files (frames by name, and in order), every picture's rectangle, and a
    preview with the cells numbered.
    """
    from layerdiffuse_mcp.outputs.sheets import SHEET, frame_name, own_stem, sheet_files

    known = services(ctx)
    made_as, kept = output or PictureFile(), edges or SheetEdges()
    format = made_as.format or "png"
    options = SheetOptions(cell_size(cell), columns, anchor, fit, kept.trim, kept.defringe, kept.padding, kept.extrude)

    def task(keep: Keep) -> MakeSheetTask:
        from layerdiffuse_mcp.images.atlas import unique_names

        paths = tuple(known.picture(picture.image, keep) for picture in images)
        names = unique_names([given.name or frame_name(path) for given, path in zip(images, paths, strict=True)])
        return MakeSheetTask(paths, names, options, f".{format}", made_as.preview, known.settings.max_pixels)

    with known.contents.borrowing() as keep:
        made = await done(ctx, await anyio.to_thread.run_sync(task, keep))
    now = datetime.now().astimezone()
    files = sheet_files(made, own_stem(made_as.name or ""), format, now)
    job, [sheet], [by_name, in_order] = await recorded(known, "make_sheet", files, made.notes, now)
    facts = Sheet(
        path=str(sheet.path), uri=image_uri(job, 1), width=made.width, height=made.height, cell=list(made.cell),
        columns=made.columns, margin=made.margin, spacing=made.spacing, atlas=by_name, atlas_array=in_order,
        frames=[_frame(frame) for frame in made.frames], notes=made.notes,
    )  # fmt: skip
    count = len(made.frames)
    lines = [
        f"Made a sheet of {count} picture{'s' * (count != 1)}: {sheet.path} ({made.width}x{made.height}, cells of "
        f"{made.cell[0]}x{made.cell[1]}, {made.columns} a row): {describe(made.alpha, SHEET)}",
        f"Atlas, frames by name: {by_name}",
        f"Atlas, frames in order: {in_order}",
        *made.notes,
    ]
    return picture_result(job, sheet, lines, made.preview, facts)


def _frame(frame: tasks.Frame) -> SheetFrame:
    x, y, width, height = frame.box
    return SheetFrame(name=frame.name, x=x, y=y, width=width, height=height)
