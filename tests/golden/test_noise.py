"""Noise draws equal the reference."""

import pytest
import torch

from layerdiffuse_mcp.engine.sampling.noise import BrownianNoise, PhiloxNormal

PHILOX_TOLERANCE = 1e-6  # absolute


@pytest.mark.golden_file("noise_and_sigmas", only="philox")
def test_philox_draws_equal_the_gpu_generator(golden, key):
    _, seed, draw = key.split("/")
    gold = golden.file("noise_and_sigmas")[key]
    generator = PhiloxNormal(int(seed))
    ours = generator.draw(tuple(gold.shape))
    if draw == "second":
        ours = generator.draw(tuple(gold.shape))
    golden.check("noise_and_sigmas", key, ours)
    assert (ours - gold).abs().max() <= PHILOX_TOLERANCE


@pytest.mark.golden_file("noise_and_sigmas", only="brownian")
def test_brownian_noise_equals_the_reference(golden, key):
    start, end = (torch.tensor(float(sigma)) for sigma in key.removeprefix("brownian/").split("_"))
    gold = golden.file("noise_and_sigmas")[key]
    tree = BrownianNoise(golden.seeds, tuple(gold.shape[1:]), 0.03, 14.6)
    golden.check("noise_and_sigmas", key, tree(start, end))
