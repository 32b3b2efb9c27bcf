"""What draws a family, by the name on its card.

layers = drawer_of(model.spec)(plans, model, pictures, meter, show)
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.engine.drawing import diffusers, sampled
from layerdiffuse_mcp.engine.pipeline.previews import Show
from layerdiffuse_mcp.engine.pipeline.progress import Meter
from layerdiffuse_mcp.engine.types import LayerImage, Pictures
from layerdiffuse_mcp.families.spec import FamilySpec


class Drawer(Protocol):
    """Plans to layers."""

    def __call__(
        self, plans: Sequence[DrawPlan], model: Any, pictures: Pictures, meter: Meter, show: Show
    ) -> list[list[LayerImage]]:
        """For each plan every layer of every result, results first.

        Args:
            plans: at least one; they differ at most in `plan.MAY_DIFFER` and name the same LoRAs.
            model: of a class that this drawer draws with: a family's card names both.
            pictures: what all of them start from.
            meter: hears of progress, and may stop the run by raising.
            show: sees each step.
        """
        ...


DRAWERS: Mapping[str, Drawer] = {"sampled": sampled.draw, "diffusers": diffusers.draw}


def drawer_of(family: FamilySpec) -> Drawer:
    """The drawer that the family's card names."""
    return DRAWERS[family.drawer]
