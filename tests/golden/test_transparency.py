"""Latent transparency equals the reference."""

import pytest
from torch import nn

from layerdiffuse_mcp.engine.transparency.decode import decode
from layerdiffuse_mcp.engine.transparency.encode import encode_offset
from layerdiffuse_mcp.engine.transparency.networks import OffsetEncoder, TransparentDecoder

pytestmark = pytest.mark.golden_file("transparency")

WIDTHS = {"narrow": (8, 8, 16, 16, 32, 32, 32), "full": (32, 32, 64, 128, 256, 512, 512)}


def fill(golden, network: nn.Module, name: str):
    network.load_state_dict({key: golden.weight(f"{name}.{key}", t.shape) for key, t in network.state_dict().items()})
    return network.eval()


@pytest.fixture(scope="module")
def decoders(golden):
    return {kind: fill(golden, TransparentDecoder(widths), f"decoder.{kind}") for kind, widths in WIDTHS.items()}


@pytest.fixture(scope="module")
def encoder(golden):
    return fill(golden, OffsetEncoder(), "encoder")


def test_alpha_and_offsets_equal_the_reference(golden, key, decoders, encoder):
    match key.split("/"):
        case ["encoder", "offset", picture]:
            ours = encode_offset(encoder, golden.file("imaging")[f"rgba/{picture}"].numpy())
        case ["decoder", kind, size, passes]:
            height, width = map(int, size.split("x"))
            pixel = golden.uniform(f"pixel.{size}", (1, 3, height, width))
            latent = golden.noise(f"latent.{size}", (1, 4, height // 8, width // 8))
            ours = decode(decoders[kind], pixel, latent, augmented=passes == "augmented")
        case _:
            pytest.fail(f"no case for {key}")
    golden.check("transparency", key, ours)
