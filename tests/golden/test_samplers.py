"""Every sampler's latents equal the reference's, from noise and from a latent."""

import pytest

from layerdiffuse_mcp.choices import SAMPLERS
from layerdiffuse_mcp.engine.networks import UNetNetwork
from layerdiffuse_mcp.engine.sampling.denoiser import Denoiser
from layerdiffuse_mcp.engine.sampling.noise import BatchNoise
from layerdiffuse_mcp.engine.sampling.samplers import sample
from layerdiffuse_mcp.engine.sampling.schedules import plan, sigma_table

from .networks import base_unet, conditionings

pytestmark = pytest.mark.golden_file("samplers")


@pytest.fixture(scope="module")
def network(golden):
    return UNetNetwork(base_unet(golden, "sd15"))


def test_sampled_latents_equal_the_reference(golden, key, network):
    guidance, latent, strength = 7.0, None, None
    match key.split("/"):
        case ["img2img", sampler, schedule, amount]:
            latent, strength = golden.noise("init", (1, 4, *golden.latent)), float(amount)
        case ["cfg1", sampler, schedule]:
            guidance = 1.0
        case [sampler, schedule]:
            schedule = schedule.replace("-", "Automatic")
        case _:
            pytest.fail(f"no case for {key}")
    row, table = SAMPLERS[sampler], sigma_table()
    denoiser = Denoiser(network, table, *conditionings(golden, "sd15"), guidance)
    noise = BatchNoise(golden.seeds, (4, *golden.latent))
    ours = sample(row, denoiser, plan(row, schedule, 8, table, strength), noise, latent=latent)
    golden.check("samplers", key, ours)
