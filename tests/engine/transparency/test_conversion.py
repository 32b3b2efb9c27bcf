"""A codec that is published as a pickle becomes the files that are read here, and nothing that it carries runs."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from layerdiffuse_mcp.engine.transparency.conversion import convert
from layerdiffuse_mcp.engine.transparency.networks import load_decoder, load_offset_encoder
from layerdiffuse_mcp.errors import LayerFileError
from layerdiffuse_mcp.families.flux import CODEC
from tests.flux_base import CHANNELS, Harm, codec, pickled


@pytest.fixture
def published(tmp_path: Path) -> Path:
    path = tmp_path / "TransparentVAE.pth"
    path.write_bytes(pickled())
    return path


def test_both_networks_are_written_as_the_released_files_are(published: Path, tmp_path: Path):
    assert convert(published, tmp_path) == CODEC.files
    for network, name in zip(codec(), (CODEC.decoder, CODEC.encoder), strict=True):
        written, wanted = load_file(tmp_path / name), network.state_dict()
        assert written.keys() == wanted.keys()
        assert all(torch.allclose(written[key], weight, atol=1e-6) for key, weight in wanted.items())


def test_what_the_published_networks_compute_is_kept(published: Path, tmp_path: Path):
    """As their authors run them: red, green, blue, alpha in and out, and the encoder's answer times 300."""
    theirs = torch.load(published, weights_only=True)
    convert(published, tmp_path)
    decoder, encoder = load_decoder(tmp_path / CODEC.decoder), load_offset_encoder(tmp_path / CODEC.encoder)
    pixel, latent, rgba = torch.rand(1, 3, 64, 64), torch.randn(1, CHANNELS, 8, 8), torch.rand(1, 4, 64, 64)
    with torch.no_grad():
        ours = decoder(pixel, latent).roll(-1, 1), encoder(rgba.roll(1, 1))
        for network, name in ((decoder, "decoder."), (encoder, "encoder.")):
            network.load_state_dict({key: theirs[name + key] for key in network.state_dict()})
        published_answers = decoder(pixel, latent), encoder(rgba) * 300
    for our, their in zip(ours, published_answers, strict=True):
        assert torch.allclose(our, their, atol=1e-4)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused_unrun(tmp_path: Path, legacy: bool):
    path, mark = tmp_path / "TransparentVAE.pth", tmp_path / "ran"
    torch.save({"decoder.conv_in.weight": Harm(mark)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(LayerFileError, match=r"asks for posix.system when it is opened.*Nothing of it was run"):
        convert(path, tmp_path)
    assert not mark.exists()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_is_refused_unrun(tmp_path: Path):
    path, mark = tmp_path / "TransparentVAE.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Harm(mark)))
    with pytest.raises(LayerFileError, match=r"TransparentVAE.pth is no file that torch.save wrote"):
        convert(path, tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([torch.zeros(1)], "something else than tensors by name"),
        ({"decoder.conv_out.weight": 1}, "something else than tensors by name"),
        ({"weight": torch.zeros(1)}, r"is no codec: it has no decoder\.conv_out\.weight\. What is converted is Transp"),
    ],
)
def test_what_is_no_codec_is_refused(tmp_path: Path, content: Any, says: str):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(LayerFileError, match=says):
        convert(tmp_path / "x.pth", tmp_path)


@pytest.mark.parametrize("size", [0, 10, 2000, -100])
def test_a_damaged_file_is_refused(published: Path, tmp_path: Path, size: int):
    published.write_bytes(published.read_bytes()[:size])
    with pytest.raises(LayerFileError, match=r"TransparentVAE.pth is no file that torch.save wrote, or damaged"):
        convert(published, tmp_path)


def changed(published: Path, **tensors: torch.Tensor) -> None:
    torch.save(torch.load(published, weights_only=True) | tensors, published)


@pytest.mark.parametrize(
    ("key", "tensor", "says"),
    [
        (
            "decoder.latent_conv_in.weight",
            torch.zeros(8, 5, 1, 1),
            "latents of 5 channels, of which no family",
        ),
        ("decoder.conv_in.weight", torch.zeros(8, 3, 1, 1), "does not fit a transparent decoder: conv_in.weight has"),
        ("encoder.blocks.2.bias", torch.full((4,), torch.nan), "holds values that are not numbers"),
        ("encoder.blocks.16.weight", torch.zeros(3), r"it has no encoder\.blocks\.16\.weight"),
    ],
)
def test_a_codec_with_other_tensors_is_refused(
    published: Path, tmp_path: Path, key: str, tensor: torch.Tensor, says: str
):
    changed(published, **{key: tensor})
    with pytest.raises(LayerFileError, match=says):
        convert(published, tmp_path)
