"""What becomes of a job's pictures between the engine and the disk, decided with the plan (`jobs/planner.py`).

`jobs/finishing.py` has it done in a picture process: the files of the job still appear together, or none does.
"""

from dataclasses import dataclass

from layerdiffuse_mcp.api.cells import Cell
from layerdiffuse_mcp.api.outcome import Placement
from layerdiffuse_mcp.api.sizes import Field


@dataclass(frozen=True)
class IntoCells:
    """Each picture, one a subject, goes into a cell of its own; with `sheet` all of them also into one picture."""

    subjects: tuple[str, ...]
    cell: Cell
    sheet: bool
    name: str
    format: str


@dataclass(frozen=True)
class OntoBackground:
    """Each foreground is also put onto the picture that was given as its background, whose SHA-256 is `sha256`.

    `field` is how what was drawn lies on it.
    """

    sha256: str
    name: str
    field: Field
    format: str


@dataclass(frozen=True)
class OverGiven:
    """What was drawn lies so on the picture that it was drawn from, called `name`: its pictures say that."""

    placement: Placement
    name: str


@dataclass(frozen=True)
class IntoDocument:
    """The layers of the picture whose SHA-256 is `sha256` also become one composition, as PNG and as `format`.

    `planned` layers were asked for, and some may be empty; `size` is the picture's, as the layers have it. `keep`: what
    it is made of, by file names and hashes, in its files.
    """

    sha256: str
    name: str
    size: tuple[int, int]
    planned: int
    format: str
    keep: bool = True


Finish = IntoCells | OntoBackground | OverGiven | IntoDocument
