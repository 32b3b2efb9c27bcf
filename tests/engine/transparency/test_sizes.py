"""Pictures of every shape decode to what the plain decoder makes of them, on two threads."""

import itertools
import random

import numpy as np
import pytest
import torch

from layerdiffuse_mcp.engine.transparency.decode import decode
from layerdiffuse_mcp.engine.transparency.networks import TransparentDecoder
from tests.engine.transparency.test_networks import inputs, plainly, randomised, relative

pytestmark = pytest.mark.usefixtures("two_threads")

WIDTHS = (4, 4, 8, 8, 8, 8, 8)
PADDED = range(64, 257, 64)
BETWEEN = random.Random(0).sample([*itertools.product(range(64, 257, 8), repeat=2)], 40)


@pytest.fixture(scope="module")
def decoder():
    return randomised(TransparentDecoder(WIDTHS))


@pytest.mark.parametrize("size", [*itertools.product(PADDED, repeat=2)], ids=str)
def test_every_shape_that_is_decoded_equals_the_plain_decoder(decoder, size):
    pixel, latent = inputs(*size)
    assert relative(decode(decoder, pixel, latent), plainly(decoder, pixel, latent)) < 1e-4


@pytest.mark.parametrize("size", BETWEEN, ids=str)
def test_a_view_of_sizes_between_equals_the_plain_decoder_on_the_mirrored_picture(decoder, size):
    height, width = size
    pixel, latent = inputs(height, width)
    with torch.no_grad():
        whole = decoder(mirrored(pixel, 64), mirrored(latent, 8))
    assert relative(decode(decoder, pixel, latent, augmented=False), whole[..., :height, :width]) < 1e-4


@pytest.mark.parametrize("size", [(8, 104), (136, 64), (72, 120)], ids=str)
def test_all_views_of_a_size_between_are_those_of_the_mirrored_picture(decoder, size):
    height, width = size
    pixel, latent = inputs(height, width)
    whole = plainly(decoder, mirrored(pixel, 64), mirrored(latent, 8))
    assert relative(decode(decoder, pixel, latent), whole[..., :height, :width]) < 1e-4


def mirrored(picture, multiple):
    """(1, C, H, W) continued at the right and the bottom by its mirror image to sides that are multiples of so many."""
    more = [(0, 0), (0, 0), *((0, -side % multiple) for side in picture.shape[2:])]
    return torch.from_numpy(np.pad(picture.numpy(), more, mode="symmetric"))
