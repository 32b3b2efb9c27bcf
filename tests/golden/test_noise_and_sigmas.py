"""Noise draws and noise levels equal the reference."""

import pytest
import torch

from layerdiffuse_mcp.choices import SAMPLERS
from layerdiffuse_mcp.engine.sampling.noise import BrownianNoise, PhiloxNormal
from layerdiffuse_mcp.engine.sampling.schedules import sigma_table, sigmas

PHILOX_TOLERANCE = 1e-6  # absolute


@pytest.mark.golden_file("noise_and_sigmas", only="philox/")
def test_philox_draws_equal_the_gpu_generator(golden, key):
    _, seed, draw = key.split("/")
    gold = golden.file("noise_and_sigmas")[key]
    generator = PhiloxNormal(int(seed))
    ours = generator.draw(tuple(gold.shape))
    if draw == "second":
        ours = generator.draw(tuple(gold.shape))
    golden.check("noise_and_sigmas", key, ours)
    assert (ours - gold).abs().max() <= PHILOX_TOLERANCE


@pytest.mark.golden_file("noise_and_sigmas", only="brownian/")
def test_brownian_noise_equals_the_reference(golden, key):
    start, end = (torch.tensor(float(sigma)) for sigma in key.removeprefix("brownian/").split("_"))
    gold = golden.file("noise_and_sigmas")[key]
    tree = BrownianNoise(golden.seeds, tuple(gold.shape[1:]), 0.03, 14.6)
    golden.check("noise_and_sigmas", key, tree(start, end))


@pytest.mark.golden_file("noise_and_sigmas", only="sigmas/")
def test_schedules_equal_the_reference(golden, key):
    _, schedule, steps = key.split("/")
    golden.check("noise_and_sigmas", key, sigmas(schedule, int(steps), sigma_table(), SAMPLERS["Euler"]))


@pytest.mark.golden_file("noise_and_sigmas", only="percent_to_sigma")
def test_the_sigma_of_a_stopping_point_equals_the_reference(golden, key):
    table = sigma_table()
    ours = torch.tensor([table.percent_to_sigma(done) for done in (0.25, 0.5, 0.75)])
    golden.check("noise_and_sigmas", key, ours)
