"""Control: a drawing follows a picture of edges, depth, a pose or the like, as a ControlNet reads it.

    control = Control(model="canny", image=Path("house.png"), preprocess="canny", strength=0.8, end=0.7)
    control.acts(3, 20)             # whether it acts in the fourth of twenty steps

A request names several; each stage that draws one of its `frames` is controlled.
"""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from layerdiffuse_mcp.api.choices import PREPROCESS
from layerdiffuse_mcp.api.fields import OneOf, bounded
from layerdiffuse_mcp.api.layers import Options
from layerdiffuse_mcp.families.spec import ROLES, Role

MAX_CONTROLS = 4
MAX_STRENGTH = 2
CONTROL_PICTURE = "control_"
"""What the names of control pictures among a request's begin with; a number from 1 follows."""
AddedName = Annotated[str, Field(min_length=1, max_length=200)]
"""The name of a ControlNet or an IP-Adapter."""
Strength = Annotated[float, Field(gt=0, le=MAX_STRENGTH, allow_inf_nan=False)]
REFERENCE, REFERENCE_MASK = "reference", "reference_mask"
"""The names of the picture that is referred to, and of its mask."""


class ControlUse(Options):
    """How a ControlNet acts. `start` and `end` are shares of the steps; no `frames` are all that are drawn."""

    what: ClassVar[str] = "control"

    preprocess: Annotated[str, OneOf(tuple(PREPROCESS), "preprocessing")] = "none"
    strength: Strength = 1.0
    start: Annotated[float, bounded(0, 1, "Share of the steps before it acts")] = 0.0
    end: Annotated[float, bounded(0, 1, "Share of the steps after which it does not act")] = 1.0
    frames: Annotated[tuple[Role, ...], Field(max_length=len(ROLES))] = ()

    @model_validator(mode="after")
    def _acts_at_all(self) -> "ControlUse":
        if self.start >= self.end:
            raise ValueError("start is not below end, so it would never act: choose a smaller start or a larger end")
        return self

    def acts(self, step: int, steps: int) -> bool:
        """Whether it acts in a step, counted from 0: in those that lie within start and end, as in diffusers."""
        return step / steps >= self.start and (step + 1) / steps <= self.end


class ControlSettings(ControlUse):
    """A ControlNet by name, and how it acts."""

    model: AddedName


class Control(ControlSettings):
    """With the picture that is followed."""

    image: Path


class ReferenceUse(Options):
    """How an IP-Adapter acts."""

    what: ClassVar[str] = "reference"

    strength: Strength = 0.6


class ReferenceSettings(ReferenceUse):
    """An IP-Adapter by name, and how strongly it acts."""

    model: AddedName


class Reference(ReferenceSettings):
    """With the picture that is referred to. mask: white where it acts; None: everywhere."""

    image: Path
    mask: Path | None = None


def control_names(count: int) -> list[str]:
    """What the pictures of so many controls are called among a request's."""
    return [f"{CONTROL_PICTURE}{number}" for number in range(1, count + 1)]
