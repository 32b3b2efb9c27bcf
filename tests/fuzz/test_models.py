"""Damaged model files, latents and lists: an error of ours or a model, in bounded time and memory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from layerdiffuse_mcp.engine.layers.attention_sharing_file import SharingModel
from layerdiffuse_mcp.engine.layers.weight_offset import read_offsets
from layerdiffuse_mcp.engine.transparency.latent_file import SavedLatent, latent_bytes, read_latent
from layerdiffuse_mcp.engine.transparency.networks import load_decoder, load_offset_encoder
from layerdiffuse_mcp.engine.weights.lora import read_lora
from layerdiffuse_mcp.engine.weights.reader import read_checkpoint
from layerdiffuse_mcp.families.registry import FAMILIES, METHODS
from layerdiffuse_mcp.hub.folder import read_models_folder
from tests.fuzz.damage import damaged, damaged_safetensors
from tests.fuzz.examples import examples, refusable
from tests.narrow import networks, write_lora, write_models

LIST = """
[[base]]
name = "my-base"
path = "tiny-sd15.safetensors"
native_size = 64
description = "What it is good at"

[[base]]
name = "far"
repo = "someone/something"
file = "base.safetensors"
family = "sdxl"
sha256 = "31e35c80fc"

[[lora]]
name = "watercolour"
path = "loras/mine.safetensors"
trigger = "watercolour painting"
"""
TOML = (
    b"name = 1", b"path = ''", b"path = '\\u0000'", b"path = '/dev/zero'", b"[[base]]", b"[base]", b"[[lora.base]]",
    b"native_size = 99999999999999999999", b"native_size = nan", b"family = 'sd3'", b"repo = '../..'", b"\xff\xfe",
    b"a" * 100_000, b"[" * 5000, b"x = " + b"[" * 5000, b"'", b'"""', b"\0",
)  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Right files of every kind: both narrow bases, all layer files, a LoRA, a latent."""
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    write_lora(folder / "loras" / "mine.safetensors")
    latent = latent_bytes(SavedLatent(torch.zeros(4, 8, 8), 64, 64, "sd15", "pocket", 7))
    (folder / "latent.safetensors").write_bytes(latent)
    return folder


class Unets(dict[str, Any]):
    """A narrow UNet by family."""

    def __repr__(self) -> str:  # for hypothesis, which shows all arguments of what fails
        return "unets"


@pytest.fixture(scope="module")
def unets() -> Unets:
    return Unets({family: networks(family)[0] for family in ("sd15", "sdxl")})


def read_base(path: Path, unets: Unets) -> None:
    checkpoint = read_checkpoint(path)
    checkpoint.unet()
    checkpoint.vae()
    checkpoint.text_encoders()


def look_at_latent(path: Path, unets: Unets) -> None:
    saved = read_latent(path)
    assert saved.latent.shape[0] == 4
    assert saved.latent.isfinite().all()


def look_at_lora(path: Path, unets: Unets) -> None:
    read_lora(path).patches({"unet": unets["sd15"]}, 0.8)


SD15, SDXL = METHODS["layer_sd15_joint"].file, METHODS["layer_xl_transparent_attn"].file
READERS: dict[str, Callable[[Path, Unets], object]] = {
    "tiny-sd15.safetensors": read_base,
    "tiny-sdxl.safetensors": read_base,
    SD15: lambda path, unets: SharingModel.read(path, unets["sd15"]),
    SDXL: lambda path, unets: read_offsets(path, unets["sdxl"]),
    FAMILIES["sd15"].codec.decoder: lambda path, unets: load_decoder(path),
    FAMILIES["sd15"].codec.encoder: lambda path, unets: load_offset_encoder(path),
    "loras/mine.safetensors": look_at_lora,
    "latent.safetensors": look_at_latent,
}


@pytest.mark.parametrize("name", READERS)
@examples(15)
@given(data=st.data())
def test_a_damaged_safetensors_file_is_refused_or_read(
    models: Path, unets: Unets, tmp_path: Path, name: str, data: st.DataObject
):
    whole = (models / name).read_bytes()
    path = tmp_path / Path(name).name
    path.unlink(missing_ok=True)  # rather than written over: one that was read may still be mapped
    path.write_bytes(data.draw(damaged_safetensors(whole) | damaged(whole)))
    with refusable():
        READERS[name](path, unets)


@examples(60)
@given(data=st.data())
def test_a_models_folder_with_damaged_files_and_list_is_refused_or_read(tmp_path: Path, data: st.DataObject):
    small = tmp_path / "small.safetensors"
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(4, 2)}, small)
    (tmp_path / "models" / "loras").mkdir(parents=True, exist_ok=True)
    lines = LIST.encode().splitlines()
    for line in data.draw(st.lists(st.sampled_from(TOML), max_size=2)):
        lines.insert(data.draw(st.integers(0, len(lines))), line)
    (tmp_path / "models" / "models.toml").write_bytes(data.draw(st.just(b"\n".join(lines)) | damaged(LIST.encode())))
    path = tmp_path / "models" / "loras" / "mine.safetensors"
    path.write_bytes(data.draw(damaged_safetensors(small.read_bytes())))
    with refusable():
        user_files = read_models_folder(tmp_path / "models")
        json.dumps([entry.name for entry in (*user_files.bases, *user_files.loras)], ensure_ascii=False).encode()
