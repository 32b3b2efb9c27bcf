"""What comes back from the engine: encoded pictures and facts about them, and then their paths.

These types cross the process boundary and become, once the files are on disk, nearly as they
are the structured content of a tool result: paths and numbers, never pixels.
"""

from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from layerdiffuse_mcp.families.spec import Role

Edge = Literal["top", "right", "bottom", "left"]
Verdict = Literal["good", "doubtful", "failed"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
"""The best first."""

EXHAUSTED = "exhausted"
"""True in an engine's status after memory ran out, which only the end of its process gives back for sure."""


class Frozen(BaseModel):
    """A value: immutable, with no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class AlphaFacts(Frozen):
    """What the alpha channel of a picture holds; shares are 0..1 of all pixels."""

    transparent: float = Field(description="Share of pixels with alpha 0 (at most 4 of 255)")
    partial: float = Field(description="Share of pixels in between: soft edges, glass, smoke")
    opaque: float = Field(description="Share of pixels with alpha 255 (at least 251 of 255)")
    bbox: tuple[int, int, int, int] | None = Field(
        description="Left, top, right, bottom of all that is visible, in pixels; right and bottom are exclusive"
    )
    edges_touched: tuple[Edge, ...] = Field(description="Picture edges that visible content reaches: it may be cut off")
    has_transparency: bool = Field(description="False when the picture is practically opaque everywhere")


class Placement(Frozen):
    """How what was drawn lies on the picture that it was drawn from; pixels of that picture."""

    x: int = Field(description="Left edge of what was drawn on the given picture, in its pixels")
    y: int = Field(description="Top edge, likewise")
    width: int = Field(description="Of what was drawn as it lies there, in pixels of the given picture")
    height: int = Field(description="Likewise")
    scale: float = Field(description="How many times as wide as its own file it is there")
    crop: tuple[int, int, int, int] = Field(
        description="Part of the given picture that the model saw: left, top, right, bottom, the last two exclusive"
    )


class SheetLayout(Frozen):
    """How the cells of a sheet lie, in pixels: `spacing` between two, `margin` before the first."""

    cell: tuple[int, int]
    columns: int
    spacing: int
    margin: int


class PictureFacts(Frozen):
    """What is known of one picture, wherever it is."""

    role: Role | None = Field(description="Which layer this is; null for one that the model names itself")
    name: str | None = Field(default=None, description="The model's own name for the layer, where it has no role")
    box: tuple[int, int, int, int] | None = Field(
        default=None, description="Where the layer lies in the result, where it does not fill it"
    )
    width: int
    height: int
    seed: int | None = Field(default=None, description="Seed that draws this picture alone; null where none did")
    alpha: AlphaFacts | None = Field(description="Alpha facts; null for an opaque layer")
    verdict: Verdict | None = Field(default=None, description="Null where nothing was asked for that it could miss")
    reason: str | None = Field(default=None, description="Why the verdict is not good, and what to try")
    subject: str | None = Field(default=None, description="Of a set: what it shows")
    placement: Placement | None = Field(
        default=None, description="On the picture that it was drawn from, of another size"
    )
    note: str | None = Field(default=None, description="What else to know of it")

    @property
    def label(self) -> str:
        """What the layer is called: its role, or the model's own name for it."""
        return self.role or self.name or "layer"


class ImageResult(PictureFacts):
    """One picture file."""

    path: Path = Field(description="Absolute path of the PNG")


class EncodedFile(Frozen):
    """A file that is not on disk yet: a picture, or with `picture` None a latent."""

    name: str = Field(description="What it is (`outputs.names.file_name`); the writer puts date and time first")
    data: bytes = Field(repr=False)
    picture: PictureFacts | None = None


class Timings(Frozen):
    """Seconds spent, by stage; `denoise` are those of `draw` in which the denoiser made its steps."""

    load: float = 0.0
    draw: float = 0.0
    denoise: float = 0.0
    write: float = 0.0
    total: float = 0.0


class Outcome(Frozen):
    """All that a finished request left behind.

    An engine hands over `encoded` files; `outputs.writer.saved` puts them on disk and makes `images` and `latents` of
    them, which is what everybody else sees. `files` are neither pictures nor latents: a sheet's atlas, by name and in
    order. `licences` of the base, as `model`, and of the other files that it was drawn with, or unknown.
    With a `sheet` the last picture is one of all the others. `dated` is the time that the files are named by,
    where one of them names another.
    """

    encoded: tuple[EncodedFile, ...] = Field(default=(), exclude=True)
    dated: datetime | None = Field(default=None, exclude=True)
    images: tuple[ImageResult, ...] = ()
    latents: tuple[Path, ...] = ()
    files: tuple[Path, ...] = ()
    model: str = ""
    device: str = ""
    dtype: str = ""
    timings: Timings = Timings()
    licences: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    recipe: dict[str, Any] | None = None
    status: dict[str, Any] | None = None
    sheet: SheetLayout | None = None
    parts: tuple["Outcome", ...] = ()
    """Of a group: one a request, without timings: those of all are the group's own."""

    @property
    def single(self) -> tuple[ImageResult, ...]:
        """The pictures without the sheet of them all."""
        return self.images[:-1] if self.sheet else self.images


class Progress(Frozen):
    """How far a job is: `fraction` is 0..1 and never falls within one job."""

    fraction: float = Field(ge=0, le=1)
    message: str
