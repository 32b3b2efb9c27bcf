"""Work on finished pictures as plain values: what to do and what came of it. They travel between processes.

    task = InspectTask(Path("apple.png"))
    inspected = images.work.run(task)           # here, or in a process of its own: backends.pictures

Paths in, facts and encoded bytes out; pixels stay where the work is done. Nothing heavy is imported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from layerdiffuse_mcp.api.layers import FITTING, UNCHANGED, Canvas, LayerOptions
from layerdiffuse_mcp.api.outcome import AlphaFacts, Progress

MAX_PIXELS = 64_000_000
CHECKERBOARD = "checkerboard"
BESIDE = ".layers.json"
"""What the file with a PSD's composition is named by, after the PSD's stem."""

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
    """Put layers together, the lowest first, and encode them as a file with `suffix`; `keep` its record in it."""

    layers: tuple[PlacedFile, ...]
    canvas: Canvas = FITTING
    background: Path | Colour | None = None
    suffix: str = ".png"
    preview: bool = False
    keep: bool = True
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class Inspected(PictureResult):
    """What a picture holds; `parameters` is the text that A1111 and its relatives write."""

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
