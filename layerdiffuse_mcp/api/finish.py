"""What becomes of a job's pictures between the engine and the disk, decided with the plan (`jobs/planner.py`).

`jobs/finishing.py` has it done in a picture process: the files of the job still appear together, or none does.
"""

from dataclasses import dataclass

from layerdiffuse_mcp.api.cells import Cell
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


Finish = IntoCells | OntoBackground
