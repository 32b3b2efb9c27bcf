"""Noise levels equal the reference: of every schedule, and as each sampler gets them."""

import pytest
import torch

from layerdiffuse_mcp.api.choices import SAMPLERS
from layerdiffuse_mcp.engine.sampling.schedules import plan, sigma_table
from layerdiffuse_mcp.families.registry import FAMILIES

PLAIN = "Euler"  # a sampler that takes the levels as they are


@pytest.mark.golden_file("noise_and_sigmas", only="sigmas")
def test_levels_equal_the_reference(golden, key):
    golden.check("noise_and_sigmas", key, levels_of(key))


@pytest.mark.golden_file("schedules_more")
def test_more_levels_equal_the_reference(golden, key):
    golden.check("schedules_more", key, levels_of(key))


@pytest.mark.golden_file("noise_and_sigmas", only="percent_to_sigma")
def test_the_sigma_of_a_stopping_point_equals_the_reference(golden, key):
    table = sigma_table()
    ours = torch.tensor([table.percent_to_sigma(done) for done in (0.25, 0.5, 0.75)])
    golden.check("noise_and_sigmas", key, ours)


def levels_of(key: str) -> torch.Tensor:
    """The levels of the run that a key names."""
    family, sampler = "sd15", PLAIN
    match key.split("/"):
        case ["sigmas", "sdxl", schedule, steps]:
            family = "sdxl"
        case ["sampler", sampler, schedule, steps]:
            pass
        case ["sigmas" | "others", schedule, steps]:
            pass
        case _:
            pytest.fail(f"no case for {key}")
    return plan(SAMPLERS[sampler], schedule, int(steps), sigma_table(steps_table=FAMILIES[family].steps_table)).sigmas
