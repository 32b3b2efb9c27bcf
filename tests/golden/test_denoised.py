"""One call of the denoiser equals the reference, for both families."""

import pytest
import torch

from layerdiffuse_mcp.engine.models.networks import UNetNetwork
from layerdiffuse_mcp.engine.sampling.denoiser import Denoiser
from layerdiffuse_mcp.engine.sampling.schedules import sigma_table

from .networks import base_unet, conditionings

pytestmark = pytest.mark.golden_file("denoised")


def test_the_denoised_estimate_equals_the_reference(golden, key):
    positive, negative = conditionings(golden, key)
    denoiser = Denoiser(UNetNetwork(base_unet(golden, key)), sigma_table(), positive, negative, guidance=1.0)
    ours = denoiser(golden.noise("x", (2, 4, *golden.latent)), torch.tensor(5.0))
    golden.check("denoised", key, ours)
