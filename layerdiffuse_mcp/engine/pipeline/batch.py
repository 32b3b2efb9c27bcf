"""What is drawn together: the results of plans, in batches that fit into memory and whose prompts are of one shape.

results = results_of(plans)
for batch in batches(results, shape, at_once=4): ...
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

from layerdiffuse_mcp.api.choices import NoiseSource
from layerdiffuse_mcp.api.plan import DrawPlan, seeds
from layerdiffuse_mcp.engine.sampling.tiles import Tiles
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.families.spec import LatentFormat


@dataclass(frozen=True)
class Result:
    """One result that a plan asks for."""

    plan: DrawPlan
    seed: int


def results_of(plans: Sequence[DrawPlan]) -> list[Result]:
    """All results of the plans, in order."""
    return [Result(plan, seed) for plan in plans for seed in seeds(plan)]


def batches(results: Sequence[Result], shape: Callable[[DrawPlan], Hashable], at_once: int) -> Iterator[list[Result]]:
    """The results in batches of at most `at_once`, alike in `shape` (of the prompts that are read for them)."""
    alike: dict[Hashable, list[Result]] = {}
    for result in results:
        alike.setdefault(shape(result.plan), []).append(result)
    for same in alike.values():
        for begin in range(0, len(same), at_once):
            yield same[begin : begin + at_once]


def noise_source(plan: DrawPlan) -> NoiseSource:
    """Where the plan's noise is drawn."""
    return cast(NoiseSource, plan.noise_source)


def drawn_size(plan: DrawPlan, latent: LatentFormat) -> tuple[int, int]:
    """Width and height that are drawn: what goes beyond the plan's size is cropped at the right and the bottom."""
    return latent.padded(plan.width, plan.height)


def padded(plan: DrawPlan, latent: LatentFormat) -> DrawPlan:
    """The plan at the size that is drawn."""
    width, height = drawn_size(plan, latent)
    return plan.model_copy(update={"width": width, "height": height})


def tiles_of(plan: DrawPlan, latent: LatentFormat) -> Tiles:
    """How what is drawn is cut."""
    return Tiles.of(drawn_size(plan, latent), plan.tiling)


def passes(plan: DrawPlan) -> list[DrawPlan]:
    """The plan itself, unless it keeps what is given, and the redrawing after it."""
    return [one for one in (plan if not plan.kept else None, plan.as_detailed) if one is not None]


def pixels_of_result(plan: DrawPlan, latent: LatentFormat) -> int:
    """Pixels that are denoised together for one result: of all its frames, a tile of each.

    Where a picture is taken apart, it is among them as it was given and once more as it is drawn; one that is
    read to be changed counts as what is kept of it.
    """
    width, height = tiles_of(plan, latent).tile
    methods = [METHODS[stage.method] for stage in plan.stages]
    drawn = max(plan.layers + 2 if method.takes_apart else method.frames for method in methods)
    return width * height * (drawn + plan.reads)
