"""Every sampler's latents equal the reference's, from noise and from a latent."""

import pytest
from torch import Tensor

from layerdiffuse_mcp.api.choices import SAMPLERS
from layerdiffuse_mcp.engine.models.networks import UNetNetwork
from layerdiffuse_mcp.engine.sampling.denoiser import Denoiser
from layerdiffuse_mcp.engine.sampling.noise import BatchNoise
from layerdiffuse_mcp.engine.sampling.samplers import sample
from layerdiffuse_mcp.engine.sampling.schedules import plan, sigma_table
from layerdiffuse_mcp.engine.types import Conditioning

from .networks import base_unet, conditionings


@pytest.fixture(scope="module")
def network(golden):
    return UNetNetwork(base_unet(golden, "sd15").to(golden.device))


@pytest.mark.golden_file("samplers")
def test_sampled_latents_equal_the_reference(golden, key, network):
    golden.check("samplers", key, sampled(golden, key, network))


@pytest.mark.golden_file("samplers_more")
def test_more_sampled_latents_equal_the_reference(golden, key, network):
    golden.check("samplers_more", key, sampled(golden, key, network))


def sampled(golden, key: str, network: UNetNetwork) -> Tensor:
    """The latents of the run that a key names."""
    guidance, latent, strength, steps = 7.0, None, None, "8"
    match key.split("/"):
        case ["img2img", sampler, schedule, amount]:
            latent, strength = golden.noise("init", (1, 4, *golden.latent)).to(golden.device), float(amount)
        case ["cfg1", sampler, schedule]:
            guidance = 1.0
        case ["others", sampler, schedule, steps]:
            pass
        case [sampler, schedule]:
            pass
        case _:
            pytest.fail(f"no case for {key}")
    row, table = SAMPLERS[sampler], sigma_table()
    texts = (Conditioning(text.context.to(golden.device)) for text in conditionings(golden, "sd15"))
    denoiser = Denoiser(network, table, *texts, guidance)
    noise = BatchNoise(golden.seeds, (4, *golden.latent), device=golden.device)
    run = plan(row, schedule.replace("-", "Automatic"), int(steps), table, strength)
    return sample(row, denoiser, run, noise, latent=latent)
