"""The tables that requests choose from name what the engine has, and cost no torch."""

import subprocess
import sys

import pytest

from layerdiffuse_mcp.api.choices import SAMPLERS, SCHEDULES, find_sampler
from layerdiffuse_mcp.engine.sampling import samplers, schedules


def test_every_sampler_row_names_a_function_and_every_function_has_a_row():
    assert {row.function for row in SAMPLERS.values()} == set(samplers.FUNCTIONS)


def test_every_schedule_row_names_a_function_and_every_function_has_a_row():
    assert {row.function for row in SCHEDULES.values()} - {None} == set(schedules.FUNCTIONS)


def test_what_a_sampler_means_by_automatic_is_a_schedule():
    assert all(row.automatic_schedule in {*SCHEDULES, None} for row in SAMPLERS.values())


def test_every_row_is_described_in_one_sentence():
    for row in (*SAMPLERS.values(), *SCHEDULES.values()):
        assert row.description.endswith(".")
        assert len(row.description) < 120


@pytest.mark.parametrize(
    ("written", "sampler", "schedule"),
    [
        ("Euler a", "Euler a", None),
        ("dpm++ 2m sde karras", "DPM++ 2M SDE", "Karras"),
        ("DPM++ 2M SDE Heun Exponential", "DPM++ 2M SDE Heun", "Exponential"),
        ("k_euler_ancestral", "Euler a", None),
        ("dpmpp_2m", "DPM++ 2M", None),
        ("euler_ancestral", "Euler a", None),
        ("DPM++ 3M-SDE SGM_uniform", "DPM++ 3M SDE", "SGM Uniform"),
        ("DPM++ 2M Align Your Steps", "DPM++ 2M", "Align Your Steps"),
    ],
)
def test_a_sampler_is_found_by_any_way_it_is_written(written, sampler, schedule):
    assert find_sampler(written) == (SAMPLERS[sampler], schedule)


def test_an_unknown_sampler_is_not_found():
    with pytest.raises(KeyError):
        find_sampler("Karras")


def test_the_tables_are_read_without_torch():
    code = "import sys, layerdiffuse_mcp.api.choices; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
