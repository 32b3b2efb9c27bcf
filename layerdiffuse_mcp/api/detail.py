"""Detail: a picture enlarged and redrawn, in overlapping tiles of about the size that its model draws best.

    detail = planned(Detail(scale=4), drawn=(512, 512), asked=(512, 512), native_size=512, downscale=8)
    detail.tiling                                   # Tiling(width=640, height=640, overlap=128)
    detail.tiling.boxes((2048, 2048))               # ((0, 0, 640, 640), (472, 0, 1112, 640), ...)

The planner decides the tiles, and a recipe holds them. Sizes are (width, height) in pixels.
"""

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from layerdiffuse_mcp.api.fields import MAX_SIZE, MIN_DRAWN, bounded
from layerdiffuse_mcp.api.sizes import NEAR, Size, area
from layerdiffuse_mcp.errors import InvalidRequest

MAX_SCALE = 4
MAX_PIXELS = 4 * MAX_SIZE**2
"""Of a result: what is done to the picture as a whole takes about 100 bytes of each."""
LARGEST, OVERLAP = 1.25, 0.25
"""Sides of a tile, at most, and what two of them have in common, at least: in the model's own size."""
CELL = 8
"""Pixels that tiles begin at multiples of, which every latent's downscale divides."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are exclusive."""
Side = Annotated[int, Field(ge=MIN_DRAWN, le=MAX_SCALE * MAX_SIZE, multiple_of=CELL)]
Scale = Annotated[float, bounded(1, MAX_SCALE, "How many times as wide and high the result is")]


Strength = Annotated[
    float,
    Field(gt=0, le=1, allow_inf_nan=False, description="How much is redrawn: 0.2 stays close, 0.5 invents much"),
]
STRENGTH = 0.3


class Tiling(BaseModel):
    """Tiles of one size, of which neighbours overlap by `overlap` pixels or more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: Side
    height: Side
    overlap: Annotated[int, Field(ge=0, le=MAX_SIZE)] = 0

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "Tiling":
        if self.overlap > min(self.width, self.height) // 2:
            raise ValueError("overlap is more than half a tile: choose less")
        return self

    def boxes(self, size: Size) -> tuple[Box, ...]:
        """Where the tiles lie in a picture whose sides are multiples of `CELL`, row by row."""
        width, height = min(self.width, size[0]), min(self.height, size[1])
        across, down = (self._starts(*pair) for pair in zip(size, (width, height), strict=True))
        return tuple((left, top, left + width, top + height) for top in down for left in across)

    def _starts(self, length: int, side: int) -> list[int]:
        """Where tiles begin along an axis: as few as can be, evenly."""
        if side == length:
            return [0]
        count = math.ceil((length - self.overlap) / (side - self.overlap))
        return [round(index * (length - side) / (count - 1) / CELL) * CELL for index in range(count)]


class Detail(BaseModel):
    """What is drawn is enlarged `scale` times and redrawn by `strength`; `tiling` is the planner's, for the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: Scale = 2.0
    strength: Strength = STRENGTH
    tiling: Tiling | None = None

    def scaled(self, size: Size) -> Size:
        """A size of before as it is in the result."""
        width, height = (max(1, round(side * self.scale)) for side in size)
        return width, height


def planned(detail: Detail, drawn: Size, asked: Size, native_size: int, downscale: int) -> Detail:
    """The same with its tiles, unless a recipe says them.

    Args:
        drawn: the size that is drawn before; asked: the one that is asked for, which `drawn` is fitted to.

    Raises:
        InvalidRequest: the result is too large, or too small for a model to draw.
    """
    width, height = detail.scaled(drawn)
    for size in ((width, height), detail.scaled(asked)):
        if size[0] * size[1] > MAX_PIXELS:
            raise InvalidRequest(
                f"{size[0]}x{size[1]} has {size[0] * size[1] / 1e6:.1f} million pixels, and a redrawn picture may have "
                f"{MAX_PIXELS / 1e6:.1f} million. Choose a smaller scale."
            )
    if min(width, height) < MIN_DRAWN:
        larger = "Choose a larger scale, or p" if MAX_SCALE * min(drawn) >= MIN_DRAWN else "P"
        raise InvalidRequest(
            f"{drawn[0]}x{drawn[1]} enlarged {detail.scale:g} times is {width}x{height}, and models draw at least "
            f"{MIN_DRAWN} pixels a side. {larger}ut it on a larger canvas first: compose_layers does."
        )
    if detail.tiling is not None:
        return detail
    padded = (width + -width % downscale, height + -height % downscale)
    return detail.model_copy(update={"tiling": tiling_of(padded, native_size)})


def tiling_of(size: Size, native_size: int) -> Tiling:
    """The tiles for a picture of `size`: one where a model draws about that size, else as few as do."""
    if area(size, native_size) <= NEAR[1]:
        return Tiling(width=size[0], height=size[1])
    step, overlap = max(CELL, min(64, native_size // 4)), int(native_size * OVERLAP) // CELL * CELL
    largest = int(native_size * LARGEST) // step * step
    width, height = (_side(length, largest, overlap, step) for length in size)
    return Tiling(width=width, height=height, overlap=overlap)


def _side(length: int, largest: int, overlap: int, step: int) -> int:
    """The least side, a multiple of `step`, with which as many tiles fill a length as the largest need."""
    if length <= largest:
        return length
    count = math.ceil((length - overlap) / (largest - overlap))
    side = math.ceil((length + (count - 1) * overlap) / count)
    return min(length, side + -side % step)
