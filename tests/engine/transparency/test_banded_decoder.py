"""The decoder by bands of rows gives what its modules give."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from layerdiffuse_mcp.engine.transparency import banded_decoder as transparency_bands
from layerdiffuse_mcp.engine.transparency.banded_decoder import BandedDecoder
from layerdiffuse_mcp.engine.transparency.decode import decode
from layerdiffuse_mcp.engine.transparency.encode import transparent_latent
from layerdiffuse_mcp.engine.transparency.networks import TransparentDecoder, load_decoder, load_offset_encoder
from layerdiffuse_mcp.engine.weights.reader import read_checkpoint
from layerdiffuse_mcp.hub.catalog import pocket_folder
from tests.engine.transparency.test_networks import WIDTHS, inputs, randomised, relative

pytestmark = pytest.mark.usefixtures("two_threads")

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


OTHERS = {"2:1": ((128, 256), (256, 128), 1), "1:2": ((256, 128), (128, 256), 1), "1:1": ((128, 128), (128, 128), 3)}


@pytest.mark.parametrize("aspect", OTHERS)
def test_a_view_is_not_touched_by_another_that_begins_meanwhile(decoder, limited, aspect):
    limited(2**15)
    shape, other, count = OTHERS[aspect]
    views = inputs(*shape), inputs(*other, count=count)
    run, main = BandedDecoder(decoder), threading.current_thread()
    held, released = threading.Event(), threading.Event()

    def hold(*_):
        if threading.current_thread() is not main:
            held.set()
            assert released.wait(120)

    @torch.inference_mode()
    def seen(pixel, latent):
        return run(pixel, latent)

    hook = decoder.latent_conv_in.register_forward_pre_hook(hold)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(seen, *views[0])
        try:
            assert held.wait(120)
            second = seen(*views[1])
        finally:
            released.set()
        ours = first.result(), second
    hook.remove()
    with torch.inference_mode():
        theirs = [decoder(*view) for view in views]
    assert [relative(*pair) < 1e-5 for pair in zip(ours, theirs, strict=True)] == [True, True]


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


@torch.inference_mode()
def test_a_picture_of_the_pocket_model_is_within_one_step_in_bfloat16():
    folder = pocket_folder()
    vae = read_checkpoint(folder / "pocket.safetensors").vae(torch.float32)
    picture = np.full((128, 128, 4), (220, 40, 30, 0), np.uint8)
    picture[32:96, 24:104, 3] = 255
    z = transparent_latent(vae, load_offset_encoder(folder / "layer_sd15_vae_transparent_encoder.safetensors"), picture)
    pixel = (vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
    decoder = load_decoder(folder / "layer_sd15_vae_transparent_decoder.safetensors")
    exact = decode(decoder, pixel, z)
    assert (decode(decoder.bfloat16(), pixel, z) - exact).abs().mean() <= 1 / 255


def test_the_decoder_itself_is_left_as_it_was(decoder):
    before = {key: tensor.clone() for key, tensor in decoder.state_dict().items()}
    both(decoder, *inputs(64, 64))
    assert all(torch.equal(tensor, before[key]) for key, tensor in decoder.state_dict().items())
