"""The words for cells: how large they are, where a picture lies in one, and how large it gets there.

    cell = Cell(size="64x64", anchor="bottom")
    cell.pixels                                     # (64, 64)

Sheets, sets and the command line share them; nothing heavy is imported.
"""

import re
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from layerdiffuse_mcp.api.fields import Omittable, OneOf
from layerdiffuse_mcp.api.layers import Anchor, Options
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.wording import quoted

MAX_CELL = 4096
"""Pixels of a cell's side, at most."""
FITS = {
    "shrink": "larger pictures are made smaller",
    "contain": "each fills its cell",
    "together": "one factor for all, so that the largest fills its cell",
}
"""How pictures come to the size of a cell; their proportions stay."""
_SIZE = re.compile(r"\s*([0-9]{1,5})\s*[xX*]\s*([0-9]{1,5})\s*")

CellAnchor = Annotated[Anchor, Field(description="Where a picture lies in its cell; bottom for figures")]
CellFit = Annotated[
    str, OneOf(tuple(FITS), "fit"), Field(description="; ".join(f"{name}: {what}" for name, what in FITS.items()))
]
Trim = Annotated[bool, Field(description="Cut each picture to what is visible, first")]
Defringe = Annotated[bool, Field(description="Give soft edges the colour of the solid parts beside them")]


class Cell(Options):
    """The canvas that all pictures of a set have, and how each lies on it."""

    what: ClassVar[str] = "cell"
    alone: ClassVar[str | None] = "size"

    size: Omittable[
        Annotated[
            str,
            Field(
                max_length=20,
                description=f'Width x height in pixels, at most {MAX_CELL} each, as in "64x64"; default: as drawn',
            ),
        ]
    ] = None
    anchor: CellAnchor = "center"
    fit: CellFit = "shrink"
    trim: Trim = True
    defringe: Defringe = False

    @model_validator(mode="after")
    def _is_a_size(self) -> "Cell":
        try:
            cell_size(self.size)
        except InvalidRequest as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Width and height, if they are given."""
        return cell_size(self.size)


def cell_size(given: str | None) -> tuple[int, int] | None:
    """Width and height of a cell.

    Raises:
        InvalidRequest: it is no size, or too large.
    """
    if given is None:
        return None
    match = _SIZE.fullmatch(given)
    sides = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(1 <= side <= MAX_CELL for side in sides):
        raise InvalidRequest(f'cell: {quoted(given)} is no size. Give width x height, 1 to {MAX_CELL} each: "128x128".')
    return sides


AS_DRAWN = Cell()
