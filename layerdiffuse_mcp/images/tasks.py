"""Work on finished pictures as plain values: what to do and what came of it. They travel between processes.

    task = InspectTask(Path("apple.png"))
    inspected = images.work.run(task)           # here, or in a process of its own: backends.pictures

Paths in, facts and encoded bytes out; pixels stay where the work is done. Nothing heavy is imported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from layerdiffuse_mcp.api.cells import Cell
from layerdiffuse_mcp.api.layers import FITTING, UNCHANGED, Canvas, LayerOptions
from layerdiffuse_mcp.api.outcome import AlphaFacts, Placement, Progress
from layerdiffuse_mcp.api.sizes import Field
from layerdiffuse_mcp.families.matting import MattingNetwork

MAX_PIXELS = 64_000_000
VIEWED = {"png": "image/png", "webp": "image/webp", "jpg": "image/jpeg"}
"""Formats that a picture is shown in, and their media types."""
CHECKERBOARD = "checkerboard"
BACKGROUND = "background"
"""What a composition calls what lies below its layers."""
COMPOSED = "composed"
"""What a picture is that was put together from others."""
BESIDE = ".layers.json"
"""What the file with a PSD's composition is named by, after the PSD's stem."""

BORDER = "border"
"""A background of one colour that is background only where it joins the picture's border."""

Colour = tuple[float, float, float]  # red, green, blue, 0 to 1
Report = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class PictureResult:
    """What came of a task. `data` is its encoded file, if there is one: it travels beside the facts."""

    data: bytes = b""


ResultT = TypeVar("ResultT", bound=PictureResult, covariant=True)


class PictureTask(Generic[ResultT]):
    """Something to do with pictures; its parameter is the result's type."""


@dataclass(frozen=True)
class Shown:
    """A small encoded picture to look at."""

    data: bytes
    mime_type: str


@dataclass(frozen=True)
class Placed:
    """Where a layer lies on the finished canvas, in pixels."""

    name: str
    x: int
    y: int
    width: int
    height: int
    visible: bool


@dataclass(frozen=True, kw_only=True)
class Composed(PictureResult):
    """A composition; `data` is its file, `alpha` of what it flattens to, `layers` where they lie, a background first.

    `record` is what has to be kept beside a file that cannot hold it.
    """

    width: int
    height: int
    layers: tuple[Placed, ...]
    alpha: AlphaFacts
    notes: tuple[str, ...]
    preview: Shown | None
    record: str | None = None


@dataclass(frozen=True)
class PlacedFile:
    """A layer by its file, under a name of its own."""

    path: Path
    name: str
    options: LayerOptions = UNCHANGED


@dataclass(frozen=True)
class ComposeTask(PictureTask[Composed]):
    """Put layers together, the lowest first, and encode them as a file with `suffix`; `keep` its record in it.

    Of a composition that was made before, `before` is the size of its canvas, which stays unless `canvas` gives
    another, and `background_at` where its background picture lies on that.
    """

    layers: tuple[PlacedFile, ...]
    canvas: Canvas = FITTING
    background: Path | Colour | None = None
    suffix: str = ".png"
    preview: bool = False
    keep: bool = True
    max_pixels: int = MAX_PIXELS
    before: tuple[int, int] | None = None
    background_at: tuple[int, int] = (0, 0)

    @property
    def room(self) -> tuple[int, int] | None:
        """What anchored layers lie against, if it is given."""
        return self.canvas.pixels or self.before

    @property
    def size(self) -> tuple[int, int] | None:
        """Of the canvas, before padding, if it is given."""
        return None if self.canvas.trim and not self.canvas.size else self.room

    @property
    def fits(self) -> bool:
        """Whether the canvas is as large as its layers need."""
        return self.room is None and not isinstance(self.background, Path) and not self.canvas.trim


@dataclass(frozen=True, kw_only=True)
class Inspected(PictureResult):
    """What a picture holds.

    `parameters` is the text that A1111 and its relatives write; `layers` names those of a composition, lowest first.
    """

    format: str
    width: int
    height: int
    has_alpha: bool
    alpha: AlphaFacts
    halo: str
    notes: tuple[str, ...]
    recipe: dict[str, Any] | None
    parameters: str | None
    preview: Shown | None
    layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class InspectTask(PictureTask[Inspected]):
    """Look at a picture's alpha, its halo and what is embedded in it; show it on a background."""

    path: Path
    background: str = CHECKERBOARD
    preview: bool = False
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class Sheet(PictureResult):
    """One small picture of several; `data` is its file."""

    mime_type: str


@dataclass(frozen=True)
class SheetTask(PictureTask[Sheet]):
    """Show pictures side by side."""

    paths: tuple[Path, ...]
    background: str = CHECKERBOARD
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class View(PictureResult):
    """A picture as it is shown; `data` is its file."""

    mime_type: str
    width: int
    height: int


@dataclass(frozen=True)
class ViewTask(PictureTask[View]):
    """Show a part of a picture at a size, in a format and on a background, as `images.view` does."""

    path: Path
    width: int | None = None
    format: str | None = None
    background: str | None = None
    crop: str | None = None
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class CutOut(PictureResult):
    """A subject without its background; `data` is its file, `how` it was cut out in words."""

    width: int
    height: int
    alpha: AlphaFacts
    how: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    preview: Shown | None


@dataclass(frozen=True)
class CutOutTask(PictureTask[CutOut]):
    """Cut the subject out of a picture whose background is known, as `images.cutout` does; encode it with `suffix`.

    A background that is not given is the one colour of its picture's border. `joined`: it is that only where it joins
    the border.
    """

    path: Path
    background: Path | Colour | None = None
    second: Path | None = None
    second_background: Path | Colour | None = None
    translucent: bool = False
    joined: bool = False
    suffix: str = ".png"
    preview: bool = False
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True)
class MatteTask(PictureTask[CutOut]):
    """Cut the subject out of a photograph with the network whose graph is at `graph`, as `images.matting` does."""

    path: Path
    graph: Path
    network: MattingNetwork
    suffix: str = ".png"
    preview: bool = False
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True)
class Frame:
    """Where a picture lies in an atlas, in pixels: `box` in the sheet, `source` in its own canvas of `canvas` pixels.

    Both boxes are left, top, width, height, and equal in size.
    """

    name: str
    box: tuple[int, int, int, int]
    source: tuple[int, int, int, int]
    canvas: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class MadeSheet(PictureResult):
    """A sheet of pictures in cells; `data` is its file."""

    width: int
    height: int
    cell: tuple[int, int]
    columns: int
    spacing: int
    margin: int
    frames: tuple[Frame, ...]
    alpha: AlphaFacts
    notes: tuple[str, ...]
    preview: Shown | None


@dataclass(frozen=True)
class SheetOptions:
    """How pictures are put into the cells of a sheet; see `images.sheet`."""

    cell: tuple[int, int] | None = None
    columns: int | None = None
    anchor: str = "center"
    fit: str = "shrink"
    trim: bool = True
    defringe: bool = False
    padding: int = 2
    extrude: int = 0


@dataclass(frozen=True)
class MakeSheetTask(PictureTask[MadeSheet]):
    """Put pictures, named as in an atlas, into the cells of one sheet, and encode it with `suffix`."""

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    options: SheetOptions = SheetOptions()
    suffix: str = ".png"
    preview: bool = False
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class MadeSet(PictureResult):
    """The pictures of a set: their files and what their alpha holds, in order; and the sheet of them all, if wanted."""

    files: tuple[bytes, ...]
    alphas: tuple[AlphaFacts, ...]
    cell: tuple[int, int]
    sheet: MadeSheet | None


@dataclass(frozen=True)
class SetTask(PictureTask[MadeSet]):
    """Put encoded pictures, named as in an atlas, into cells of one size: each alone, and with `sheet` all together.

    What a file says of itself is in the new one, too.
    """

    pictures: tuple[bytes, ...]
    names: tuple[str, ...]
    cell: Cell
    sheet: bool
    format: str = "png"
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class OnPicture(PictureResult):
    """A foreground on a picture; `data` is its file, `alpha` None where it is opaque, `crop` as of `Placement`."""

    width: int
    height: int
    alpha: AlphaFacts | None
    placement: Placement


@dataclass(frozen=True)
class OnPictureTask(PictureTask[OnPicture]):
    """Put an encoded foreground onto the picture that it was drawn for, at that picture's size.

    `field` says how the foreground lies in what the model saw of the picture.
    """

    foreground: bytes
    picture: Path
    field: Field
    format: str = "png"
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class Document(PictureResult):
    """Layers put together; `data` is what they flatten to, as PNG, `document` the file that holds them.

    `difference`: of the picture that they were taken from, the mean of all channels, 0 to 255, colour weighted by
    alpha. `record` is what has to be kept beside a document that cannot hold it.
    """

    document: bytes
    alpha: AlphaFacts
    difference: float
    record: str | None


@dataclass(frozen=True)
class DocumentLayer:
    """A layer by its file, as that is to be named, its own name and its place; None where it fills the canvas."""

    file: str
    data: bytes
    name: str
    box: tuple[int, int, int, int] | None


@dataclass(frozen=True)
class DocumentTask(PictureTask[Document]):
    """Put encoded layers, the lowest first, into one file, and compare them with the picture that they are of."""

    layers: tuple[DocumentLayer, ...]
    size: tuple[int, int]
    picture: Path
    format: str = "ora"
    keep: bool = True
    max_pixels: int = MAX_PIXELS
