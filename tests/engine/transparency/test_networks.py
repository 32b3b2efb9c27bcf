"""Latent transparency: files in, RGBA out, and every wrong file told apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from layerdiffuse_mcp.engine.device.placement import Placement
from layerdiffuse_mcp.engine.models.components import Components
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion15
from layerdiffuse_mcp.engine.transparency.codec import TransparencyNetworks, codec_of, decoder_latent
from layerdiffuse_mcp.engine.transparency.decode import decode, lower_median, to_rgb8, to_rgba8
from layerdiffuse_mcp.engine.transparency.encode import encode_offset, transparent_latent
from layerdiffuse_mcp.engine.transparency.networks import (
    OffsetEncoder,
    TransparentDecoder,
    load_decoder,
    load_offset_encoder,
)
from layerdiffuse_mcp.errors import ImageError, LayerFileError, ModelError, ModelNotFound
from layerdiffuse_mcp.families.entries import ModelFiles
from layerdiffuse_mcp.families.registry import FAMILIES
from tests.engine.narrow_bases import read_base

pytestmark = pytest.mark.usefixtures("two_threads")

WIDTHS = (8, 8, 16, 16, 32, 32, 32)
ENCODER_WIDTHS = (8, 8, 16, 16)


def randomised(network: nn.Module):
    """The network with weights that keep its signal alive, the same every time."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        value = drawn / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 1 + 0.1 * drawn
        parameter.data.copy_(value)
    return network.eval()


@pytest.fixture(scope="module")
def decoder():
    return randomised(TransparentDecoder(WIDTHS))


@pytest.fixture(scope="module")
def encoder():
    return randomised(OffsetEncoder(ENCODER_WIDTHS))


def inputs(height, width, count=1):
    generator = torch.Generator().manual_seed(height * width)
    pixel = torch.rand(count, 3, height, width, generator=generator)
    return pixel, torch.randn(count, 4, height // 8, width // 8, generator=generator)


@torch.no_grad()
def plainly(decoder, pixel, latent):
    """The eight views through the modules, of pictures whose sides are multiples of 64."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # two would wait for each other in every layer
    seen = []
    for quarters in range(4):
        both = [torch.rot90(torch.cat([t, t.flip(3)]), quarters, (2, 3)) for t in (pixel, latent)]
        upright, flipped = torch.rot90(decoder(*both).clamp(0, 1), -quarters, (2, 3)).chunk(2)
        seen += [upright, flipped.flip(3)]
    torch.set_num_threads(before)
    return torch.stack(seen).median(dim=0).values


def relative(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


def test_the_released_sizes_have_the_released_tensors():
    with torch.device("meta"):
        decoder, encoder = TransparentDecoder(), OffsetEncoder()
    assert (len(decoder.state_dict()), sum(t.numel() for t in decoder.parameters())) == (538, 104_104_804)
    assert (len(encoder.state_dict()), sum(t.numel() for t in encoder.parameters())) == (18, 1_181_764)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_narrow_file_loads_with_its_own_widths_from_any_float_type(tmp_path, decoder, dtype):
    saved = {key: tensor.to(dtype) for key, tensor in decoder.state_dict().items()}
    save_file(saved, tmp_path / "d.safetensors")
    loaded = load_decoder(tmp_path / "d.safetensors")
    assert loaded.widths == WIDTHS
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in loaded.parameters())
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, saved[key].float())


def test_a_loaded_decoder_gives_what_the_saved_one_gave(tmp_path, decoder):
    save_file(decoder.state_dict(), tmp_path / "d.safetensors")
    expected = decode(decoder, *inputs(64, 128))
    assert relative(decode(load_decoder(tmp_path / "d.safetensors"), *inputs(64, 128)), expected) < 1e-5


def test_new_networks_can_be_trained():
    decoder, encoder = TransparentDecoder(WIDTHS), OffsetEncoder(ENCODER_WIDTHS)
    pixel, latent = inputs(64, 64)
    (decoder(pixel, latent).square().mean() + encoder(torch.rand(1, 4, 64, 64)).sum()).backward()
    assert decoder.latent_conv_in.weight.grad is not None
    assert decoder.latent_conv_in.weight.grad.abs().sum() > 0
    assert encoder.blocks[16].weight.grad.abs().sum() > 0


def test_median_of_eight_is_the_fourth_smallest():
    views = list(torch.rand(8, 3, 5, 7, generator=torch.Generator().manual_seed(0)))
    views[3][0] = views[5][0]
    assert torch.equal(lower_median(views), torch.stack(views).median(dim=0).values)


@pytest.mark.parametrize("size", [(64, 64), (64, 192), (128, 64)])
def test_eight_views_are_the_median_of_flips_and_rotations(decoder, size):
    pixel, latent = inputs(*size)
    expected = plainly(decoder, pixel, latent)
    for memory in (None, 0, 10**12, 300 * 64 * 64 * 4):
        assert relative(decode(decoder, pixel, latent, memory=memory), expected) < 1e-4


def test_a_picture_decodes_the_same_alone_and_in_a_batch(decoder):
    pixel, latent = inputs(64, 128, count=3)
    together = decode(decoder, pixel, latent)
    for index in range(3):
        alone = decode(decoder, pixel[index : index + 1], latent[index : index + 1])
        assert torch.equal(alone[0], together[index])


@pytest.mark.parametrize("size", [(8, 8), (72, 64), (64, 200), (136, 88)])
def test_sizes_that_are_no_multiples_of_64_are_decoded_whole(decoder, size):
    decoded = decode(decoder, *inputs(*size))
    assert decoded.shape == (1, 4, *size)
    assert decoded.min() >= 0
    assert decoded.max() <= 1


def test_what_is_missing_to_64_is_mirrored(decoder):
    pixel, latent = inputs(64, 128)
    pixel[..., 32:64, :], latent[..., 4:8, :] = pixel[..., :32, :].flip(2), latent[..., :4, :].flip(2)
    whole = decode(decoder, pixel, latent, augmented=False)
    part = decode(decoder, pixel[..., :32, :], latent[..., :4, :], augmented=False)
    assert relative(part, whole[..., :32, :]) < 1e-5


def test_one_pass_is_the_bare_network(decoder):
    pixel, latent = inputs(64, 64)
    with torch.no_grad():
        assert relative(decode(decoder, pixel, latent, augmented=False), decoder(pixel, latent)) < 1e-5


def test_progress_is_told_and_can_stop_the_work(decoder):
    told = []
    decode(decoder, *inputs(64, 128, count=2), on_view=lambda done, of: told.append((done, of)))
    assert told == sorted(set(told))
    assert {(8, 16), (16, 16)} <= set(told)

    class Stop(Exception):
        pass

    def stop(done, _):
        raise Stop

    with pytest.raises(Stop):
        decode(decoder, *inputs(64, 64), on_view=stop)


@pytest.mark.parametrize("number", [1, 2, 3, 16])
def test_the_number_of_threads_changes_nothing_and_stays(decoder, monkeypatch, number):
    pixel, latent = inputs(128, 64)
    expected, before = decode(decoder, pixel, latent), torch.get_num_threads()
    monkeypatch.setattr("layerdiffuse_mcp.engine.device.threads.ALL", number)
    assert relative(decode(decoder, pixel, latent), expected) < 1e-5
    assert torch.get_num_threads() == before


def test_what_fails_in_a_view_is_raised(decoder, monkeypatch):
    def fail(*_):
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr("layerdiffuse_mcp.engine.transparency.banded_decoder.BandedDecoder.__call__", fail)
    with pytest.raises(RuntimeError, match="allocate"):
        decode(decoder, *inputs(64, 64))


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 3, 16, 8), (2, 4, 16, 8)])
def test_latents_of_another_picture_are_refused(decoder, shape):
    with pytest.raises(ImageError, match="do not belong together"):
        decode(decoder, torch.rand(1, 3, 128, 64), torch.zeros(shape))


def test_a_size_that_no_latent_can_have_is_refused(decoder):
    with pytest.raises(ImageError, match="multiples of 8"):
        decode(decoder, torch.rand(1, 3, 68, 64), torch.zeros(1, 4, 8, 8))


def test_numbers_that_are_not_finite_are_an_error_not_a_picture(decoder):
    with pytest.raises(ModelError, match="not finite"):
        decode(decoder, torch.full((1, 3, 64, 64), float("nan")), torch.zeros(1, 4, 8, 8))


def test_bfloat16_stays_near(decoder):
    pixel, latent = inputs(64, 64)
    exact = decode(decoder, pixel, latent)
    fast = decode(randomised(TransparentDecoder(WIDTHS)).bfloat16(), pixel, latent)
    assert fast.dtype == torch.float32
    assert (fast - exact).abs().mean() < 0.03


def test_pixels_are_truncated_and_alpha_comes_last():
    decoded = torch.tensor([0.999, 1.0, 0.5, -0.1]).reshape(4, 1, 1)
    assert to_rgba8(decoded)[0, 0].tolist() == [255, 127, 0, 254]
    assert to_rgba8(decoded[None]).shape == (1, 1, 1, 4)


def test_opaque_and_transparent_pictures_are_truncated_alike():
    pixels = torch.linspace(-0.1, 1.1, 5 * 7 * 3).reshape(3, 5, 7)
    expected = np.floor(np.clip(pixels.numpy(), 0, 1) * np.float32(255)).transpose(1, 2, 0)
    assert np.array_equal(to_rgb8(pixels), expected)
    assert np.array_equal(to_rgba8(torch.cat([torch.ones(1, 5, 7), pixels]))[..., :3], expected)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_decoder_sees_the_unscaled_latent(family):
    z, card = torch.ones(1, 4, 2, 2), FAMILIES[family]
    assert torch.equal(decoder_latent(z, card.codec, card.latent), z / card.latent.scale)
    assert torch.equal(decoder_latent(z, replace(card.codec, sees="sampled"), card.latent), z)


def test_offsets_depend_on_alpha_and_not_on_hidden_colour(encoder):
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 4), np.uint8)
    picture[:8, :, 3] = 0
    hidden = picture.copy()
    hidden[:8, :, :3] = 0
    assert encode_offset(encoder, picture).shape == (1, 4, 2, 3)
    assert torch.equal(encode_offset(encoder, picture), encode_offset(encoder, hidden))
    opaque = picture.copy()
    opaque[..., 3] = 255
    assert not torch.allclose(encode_offset(encoder, picture), encode_offset(encoder, opaque))


def test_a_transparent_latent_is_the_vaes_mean_moved_by_the_offset(encoder):
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
    ).eval()
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 4), np.uint8)
    picture[:8, :, 3] = 0
    z = transparent_latent(vae, encoder, picture)
    assert z.shape == (1, 4, 2, 3)
    assert torch.equal(z, transparent_latent(vae, encoder, picture))

    grey = Image.new("RGB", (24, 16), (127, 127, 127))
    grey.paste(Image.fromarray(picture), mask=Image.fromarray(picture[..., 3]))
    flat = torch.from_numpy(np.asarray(grey) / np.float32(255)).permute(2, 0, 1)[None]
    with torch.no_grad():
        posterior = vae.encode(flat * 2 - 1).latent_dist
    assert torch.allclose(z, posterior.mean + posterior.std * encode_offset(encoder, picture), atol=1e-5)


def test_a_picture_is_encoded_into_the_latent_format_of_its_base(tmp_path):
    checkpoint = read_base(tmp_path, "sd15")
    form = replace(checkpoint.latent, scale=(0.5, 2.0, 3.0, 4.0), shift=(0.1, -1.0, 0.0, 2.0))
    codec = checkpoint.spec.codec
    save_file(OffsetEncoder((4, 4, 8, 8)).state_dict(), tmp_path / codec.encoder)
    files = ModelFiles(base=checkpoint.path, layers={codec.encoder: tmp_path / codec.encoder})
    placement = Placement(torch.device("cpu"), torch.float32)
    model = StableDiffusion15("narrow", Components(replace(checkpoint, latent=form), placement, files))
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 4), np.uint8)
    networks = codec_of(model)
    assert isinstance(networks, TransparencyNetworks)
    mean = transparent_latent(model.vae, networks.encoder, picture)
    scale, shift = (torch.tensor(one)[None, :, None, None] for one in (form.scale, form.shift))
    assert torch.allclose(networks.encode(picture), (mean - shift) * scale, atol=1e-5)


def test_pictures_with_odd_sides_cannot_be_encoded(encoder):
    with pytest.raises(ImageError, match="multiples of 8"):
        encode_offset(encoder, np.zeros((12, 16, 4), np.uint8))


def saved_encoder(folder, name, factor):
    network = randomised(OffsetEncoder(ENCODER_WIDTHS))
    tensors = {k: t * factor if k.startswith("blocks.16.") else t for k, t in network.state_dict().items()}
    save_file(tensors, folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("vae_transparent_encoder.safetensors", 1),
        ("layer_sd15_vae_transparent_encoder.safetensors", 1),
        ("ld_diffusers_sdxl_vae_transparent_encoder.safetensors", 1 / 300),
        ("renamed.safetensors", 1 / 300),
    ],
)
def test_the_repacked_encoder_is_scaled_up_and_the_others_are_not(tmp_path, encoder, name, factor):
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 4), np.uint8)
    loaded = load_offset_encoder(saved_encoder(tmp_path, name, factor))
    assert loaded.widths == ENCODER_WIDTHS
    assert relative(encode_offset(loaded, picture), encode_offset(encoder, picture)) < 1e-5


def test_an_original_encoder_under_the_repacked_name_is_refused(tmp_path):
    with pytest.raises(LayerFileError, match="too large for that"):
        load_offset_encoder(saved_encoder(tmp_path, "ld_diffusers_sdxl_vae_transparent_encoder.safetensors", 20))


def broken(tensors, how):
    match how:
        case "missing":
            del tensors["up_blocks.3.resnets.0.norm1.weight"]
        case "unknown":
            tensors["extra.weight"] = torch.zeros(1)
        case "shape":
            tensors["up_blocks.3.resnets.0.norm1.weight"] = torch.zeros(3)
        case "nan":
            tensors["conv_out.bias"][2] = float("nan")
        case "widths":
            tensors["down_blocks.6.resnets.0.conv1.weight"] = torch.zeros(30, 32, 3, 3)
    return tensors


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "norm1.weight is missing"),
        ("unknown", "extra.weight is unknown"),
        ("shape", r"has shape \(3,\) instead of"),
        ("nan", "NaN"),
        ("widths", "cannot have the widths"),
    ],
)
def test_a_decoder_file_with_a_fault_is_refused_and_the_fault_named(tmp_path, decoder, how, words):
    tensors = {key: tensor.clone() for key, tensor in decoder.state_dict().items()}
    save_file(broken(tensors, how), tmp_path / "d.safetensors")
    with pytest.raises(LayerFileError, match=words):
        load_decoder(tmp_path / "d.safetensors")


def test_files_of_another_kind_are_told_apart(tmp_path, decoder, encoder):
    save_file(decoder.state_dict(), tmp_path / "decoder.safetensors")
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    with pytest.raises(LayerFileError, match="looks like a transparent VAE encoder"):
        load_decoder(tmp_path / "encoder.safetensors")
    with pytest.raises(LayerFileError, match="looks like a transparent VAE decoder"):
        load_offset_encoder(tmp_path / "decoder.safetensors")


def test_damaged_and_missing_files_are_told(tmp_path, encoder):
    save_file(encoder.state_dict(), tmp_path / "e.safetensors")
    data = (tmp_path / "e.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-100])
    torch.save(encoder.state_dict(), tmp_path / "pickle.safetensors")
    with pytest.raises(LayerFileError, match="cut short"):
        load_offset_encoder(tmp_path / "cut.safetensors")
    with pytest.raises(LayerFileError, match="pickle"):
        load_offset_encoder(tmp_path / "pickle.safetensors")
    with pytest.raises(ModelNotFound):
        load_decoder(tmp_path / "none.safetensors")
