"""Number formats: exact where nothing else is asked for, never one in which a network overflows."""

import re

import pytest
import torch
from safetensors.torch import save_file

from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.engine.device import placement
from layerdiffuse_mcp.engine.device.placement import Placement, place
from layerdiffuse_mcp.engine.weights.ldm_export import to_ldm
from layerdiffuse_mcp.engine.weights.ldm_names import vae_key_map
from layerdiffuse_mcp.engine.weights.reader import read_checkpoint
from layerdiffuse_mcp.engine.weights.single_file import with_vae
from layerdiffuse_mcp.errors import CheckpointError, InvalidRequest
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.settings import Settings
from tests.narrow import write_models
from tests.saving import Engine, same_pixels


def test_a_cpu_computes_in_float32_unless_told_otherwise() -> None:
    assert place("cpu", "auto").dtype is torch.float32
    assert place("cpu", "bfloat16").dtype is torch.bfloat16
    with pytest.raises(InvalidRequest, match="float16 is not exact"):
        place("cpu", "float16")


@pytest.mark.parametrize(("gain", "dtype"), [(0.0, torch.float32), (0.8, torch.float32), (2.5, torch.bfloat16)])
def test_the_fastest_format_of_a_cpu_is_the_one_that_was_measured_to_be(monkeypatch, gain, dtype) -> None:
    monkeypatch.setattr(placement, "bfloat16_gain", lambda: gain)
    chosen = place("cpu", "fastest")
    assert chosen.dtype is dtype
    assert "bfloat16" in chosen.reason


def test_the_status_says_why_the_fastest_format_was_chosen() -> None:
    status = Engine(Settings(device="cpu", dtype="fastest")).status()
    assert status["dtype"] in ("float32", "bfloat16")
    assert re.search(r"takes 1/\d+\.\d of its time|no bfloat16", status["dtype_reason"])


def test_the_sdxl_autoencoder_runs_in_float16_only_if_it_is_the_fixed_one() -> None:
    half = Placement(torch.device("mps"), torch.float16)
    assert half.vae_dtype(FAMILIES["sd15"].vae_fits_float16) is torch.float16
    assert half.vae_dtype(FAMILIES["sdxl"].vae_fits_float16) is torch.bfloat16
    assert half.vae_dtype(fits_float16=True) is torch.float16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    write_models(folder, ("sdxl",))
    base = read_checkpoint(folder / "tiny-sdxl.safetensors")
    vae = base.vae()
    state = {key: tensor * 1.1 for key, tensor in to_ldm(vae.state_dict(), vae_key_map(vae.config)).items()}
    settings = {"layerdiffuse_mcp": '{"vae": {"norm_num_groups": 4, "scaling_factor": 0.5}}'}
    (folder / "vae").mkdir()
    for name in ("plain", "sdxl-vae-fp16-fix"):
        save_file(state, folder / "vae" / f"{name}.safetensors", settings)
    (folder / "models.toml").write_text(
        '[[base]]\nname = "mended"\npath = "tiny-sdxl.safetensors"\nvae = "vae/sdxl-vae-fp16-fix.safetensors"\n'
    )
    return folder


def test_a_vae_of_its_own_file_replaces_that_of_the_base(folder, tmp_path) -> None:
    pictures = []
    for models in (folder, tmp_path):
        if models is tmp_path:
            write_models(tmp_path, ("sdxl",))
        engine = Engine(Settings(output_dir=tmp_path / "out", models_dir=models, device="cpu"))
        name = "mended" if models is folder else "tiny-sdxl"
        request = GenerateRequest(prompt="a cup", model=name, steps=1, seed=1)
        pictures.append(engine.run(request, lambda _: None).images[0].path)
        engine.close()
    assert not same_pixels(*pictures)


def test_the_fixed_vae_is_told_by_its_name(folder) -> None:
    base = read_checkpoint(folder / "tiny-sdxl.safetensors")
    assert not base.vae_fits_float16
    assert not with_vae(base, folder / "vae" / "plain.safetensors").vae_fits_float16
    assert with_vae(base, folder / "vae" / "sdxl-vae-fp16-fix.safetensors").vae_fits_float16


def test_a_file_that_is_no_vae_is_refused_by_what_it_is(folder) -> None:
    base = read_checkpoint(folder / "tiny-sdxl.safetensors")
    with pytest.raises(CheckpointError, match=r"is an SDXL layer file .* not a VAE"):
        with_vae(base, folder / "layer_xl_transparent_attn.safetensors")
