"""The decoder by bands of rows gives what its modules give."""

import copy

import pytest
import torch

from layerdiffuse_mcp.engine import transparency_bands
from layerdiffuse_mcp.engine.transparency import TransparentDecoder
from layerdiffuse_mcp.engine.transparency_bands import BandedDecoder
from tests.engine.test_transparency import WIDTHS, inputs, randomised, relative

SMALLEST = 1  # bytes: bands of two rows, attention by 64 rows of one head
WHOLE = 2**40


@pytest.fixture(scope="module")
def decoder():
    return randomised(TransparentDecoder(WIDTHS))


@pytest.fixture
def limited(monkeypatch):
    def limit(size):
        monkeypatch.setattr(transparency_bands, "BAND_BYTES", size)
        monkeypatch.setattr(transparency_bands, "SCORE_BYTES", size)

    return limit


@torch.inference_mode()
def both(decoder, pixel, latent):
    return BandedDecoder(decoder)(pixel, latent), decoder(pixel, latent)


@pytest.mark.parametrize("size", [SMALLEST, 2**15, WHOLE])
@pytest.mark.parametrize("shape", [(64, 64), (128, 320), (192, 64)])
def test_bands_of_any_size_give_what_the_modules_give(decoder, limited, size, shape):
    limited(size)
    ours, theirs = both(decoder, *inputs(*shape))
    assert ours.shape == theirs.shape
    assert relative(ours, theirs) < 1e-5


def test_the_released_widths_give_what_the_modules_give(limited):
    limited(2**17)
    ours, theirs = both(randomised(TransparentDecoder()), *inputs(64, 128))
    assert relative(ours, theirs) < 2e-5


def test_pictures_of_a_batch_do_not_touch(decoder):
    pixel, latent = inputs(64, 128, count=3)
    pixel[1] = 0.5 + pixel[1] / 100  # statistics of its own
    ours, theirs = both(decoder, pixel, latent)
    assert relative(ours, theirs) < 1e-5
    alone, _ = both(decoder, pixel[1:2], latent[1:2])
    assert relative(ours[1:2], alone) < 1e-5


@torch.inference_mode()
def test_a_large_mean_does_not_drown_the_statistics(decoder):
    pixel, latent = inputs(64, 64)
    pixel += 1000
    ours = BandedDecoder(decoder)(pixel, latent)
    exact = copy.deepcopy(decoder).double()(pixel.double(), latent.double())
    assert relative(ours.double(), exact) < 1e-4


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_as_near_as_the_modules_do(decoder, dtype):
    pixel, latent = inputs(64, 128)
    exact = decoder(pixel, latent)
    half = copy.deepcopy(decoder).to(dtype)
    ours, theirs = both(half, pixel.to(dtype), latent.to(dtype))
    assert ours.dtype == dtype
    assert relative(ours.float(), exact) < 1.2 * relative(theirs.float(), exact)


def test_the_decoder_itself_is_left_as_it_was(decoder):
    before = {key: tensor.clone() for key, tensor in decoder.state_dict().items()}
    both(decoder, *inputs(64, 64))
    assert all(torch.equal(tensor, before[key]) for key, tensor in decoder.state_dict().items())
