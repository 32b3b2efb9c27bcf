"""Base models: what is read is what was written, and what is no base says what it is."""

import json
import re
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from layerdiffuse_mcp.engine.weights.checkpoint import parameter_key
from layerdiffuse_mcp.engine.weights.ldm_export import save_single_file, single_file
from layerdiffuse_mcp.engine.weights.reader import read_checkpoint
from layerdiffuse_mcp.engine.weights.single_file import METADATA_KEY, unet_from_ldm
from layerdiffuse_mcp.errors import CheckpointError, ModelNotFound
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.hub.identify import identify
from tests.engine.narrow_bases import conditioning, same
from tests.narrow import TEXTS, UNETS, networks, settings, write_base


@pytest.fixture(params=UNETS)
def family(request):
    return request.param


def test_a_single_file_gives_back_every_network_bit_for_bit(tmp_path, family):
    unet, vae, encoders = networks(family)
    checkpoint = read_checkpoint(write_base(tmp_path, family))
    assert (checkpoint.family, checkpoint.native_size, checkpoint.latent.scale) == (family, 64, 0.5)
    assert (checkpoint.prediction, checkpoint.zero_terminal_snr, checkpoint.missing) == ("epsilon", False, ())
    assert same(checkpoint.unet(), unet.state_dict())
    assert same(checkpoint.vae(), vae.state_dict())
    ids = torch.tensor([[48, 3, 4, 49]])
    for read, made in zip(checkpoint.text_encoders(), encoders, strict=True):
        assert same(read, made.state_dict())
        assert torch.equal(read(ids)[-1], made(ids)[-1])


def test_a_network_that_was_read_computes_what_the_written_one_does(tmp_path):
    unet, _, _ = networks("sdxl")
    read = read_checkpoint(write_base(tmp_path, "sdxl")).unet()
    x, given = torch.randn(1, 4, 8, 8), conditioning(1, "sdxl")
    added = {"vector": given.vector}
    outputs = [net(x, 500, given.context, added_cond_kwargs=added).sample for net in (unet, read)]
    assert torch.allclose(*outputs, atol=1e-5)


def test_weights_are_views_of_the_file_unless_they_are_converted(tmp_path, family):
    checkpoint = read_checkpoint(write_base(tmp_path, family))
    weights = checkpoint.parts["unet"].weights
    mapped, again = checkpoint.unet(), checkpoint.unet()
    assert mapped.conv_in.weight.data_ptr() == again.conv_in.weight.data_ptr() == weights["conv_in.weight"].data_ptr()
    half = checkpoint.unet(torch.float16)
    assert half.dtype == torch.float16
    assert torch.equal(half.conv_in.weight, mapped.conv_in.weight.half())


def test_writing_to_a_network_leaves_the_file_alone(tmp_path):
    path = write_base(tmp_path, "sd15")
    before = path.read_bytes()
    with torch.no_grad():
        read_checkpoint(path).unet().conv_in.weight.zero_()
    assert path.read_bytes() == before


@pytest.mark.parametrize(("markers", "zero_snr"), [(["v_pred"], False), (["v_pred", "ztsnr"], True)])
def test_marker_keys_make_a_v_prediction_base(tmp_path, markers, zero_snr):
    unet, _, _ = networks("sdxl")
    tensors = single_file(FAMILIES["sdxl"], unet) | {marker: torch.empty(0) for marker in markers}
    save_file(tensors, tmp_path / "v.safetensors", {METADATA_KEY: json.dumps(settings("sdxl"))})
    checkpoint = read_checkpoint(tmp_path / "v.safetensors")
    assert (checkpoint.prediction, checkpoint.zero_terminal_snr) == ("v_prediction", zero_snr)
    assert checkpoint.unet()


def test_a_file_without_vae_or_text_encoder_loads_and_says_what_is_missing(tmp_path, family):
    unet, _, _ = networks(family)
    save_single_file(tmp_path / "unet-only.safetensors", FAMILIES[family], unet, settings=settings(family))
    checkpoint = read_checkpoint(tmp_path / "unet-only.safetensors")
    assert same(checkpoint.unet(), unet.state_dict())
    assert {"vae", "text_encoder"} <= set(checkpoint.missing)
    with pytest.raises(CheckpointError, match=r"unet-only.safetensors has no VAE, only UNet.*separate VAE file"):
        checkpoint.vae()
    with pytest.raises(CheckpointError, match="no text encoder"):
        checkpoint.text_encoders()


def test_old_files_name_the_text_encoder_without_text_model(tmp_path):
    unet, vae, encoders = networks("sd15")
    tensors = {
        key.replace(".text_model.", "."): t for key, t in single_file(FAMILIES["sd15"], unet, vae, encoders).items()
    }
    save_file(tensors, tmp_path / "old.safetensors", {METADATA_KEY: json.dumps(settings("sd15"))})
    assert same(read_checkpoint(tmp_path / "old.safetensors").text_encoders()[0], encoders[0].state_dict())


def test_a_unet_is_made_of_tensors_in_memory_too():
    unet = networks("sdxl")[0]
    tensors = single_file(FAMILIES["sdxl"], unet)
    assert same(unet_from_ldm(tensors, FAMILIES["sdxl"], settings("sdxl")["unet"]), unet.state_dict())


# folders


def _write_folder(folder: Path, family: str, **options) -> Path:
    unet, vae, encoders = networks(family)
    unet.save_pretrained(folder / "unet", **options)
    vae.save_pretrained(folder / "vae", **options)
    classes = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    for encoder, (name, kind), config in zip(encoders, classes.items(), TEXTS, strict=False):
        theirs = kind(CLIPTextConfig(**config, bos_token_id=48, eos_token_id=49))
        names = {parameter_key(key): key for key, _ in theirs.named_parameters()}
        theirs.load_state_dict({names[key]: value for key, value in encoder.state_dict().items()}, strict=False)
        theirs.save_pretrained(folder / name, **options)
    pipeline = {"sd15": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}[family]
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    return folder


@pytest.mark.parametrize("options", [{}, {"variant": "fp16"}, {"max_shard_size": "100KB"}])
def test_a_diffusers_folder_gives_back_every_network(tmp_path, family, options):
    unet, vae, encoders = networks(family)
    checkpoint = read_checkpoint(_write_folder(tmp_path, family, **options))
    assert (checkpoint.family, checkpoint.missing) == (family, ())
    assert same(checkpoint.unet(), unet.state_dict())
    assert same(checkpoint.vae(), vae.state_dict())
    for read, made in zip(checkpoint.text_encoders(), encoders, strict=True):
        assert same(read, made.state_dict())


def test_a_folders_scheduler_tells_the_prediction(tmp_path):
    folder = _write_folder(tmp_path, "sdxl")
    (folder / "scheduler").mkdir()
    scheduler = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    checkpoint = read_checkpoint(folder)
    assert (checkpoint.prediction, checkpoint.zero_terminal_snr) == ("v_prediction", True)


def test_a_folders_autoencoder_tells_the_latents_scale_and_shift(tmp_path):
    folder = _write_folder(tmp_path, "sd15")
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.7, "shift_factor": 0.1}))
    latent = read_checkpoint(folder).latent
    assert (latent.scale, latent.shift) == (0.7, 0.1)


def test_a_folder_of_another_pipeline_is_named(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxFillPipeline"}))
    with pytest.raises(CheckpointError, match="is a FluxFillPipeline folder"):
        read_checkpoint(tmp_path)


def test_a_folder_with_pickles_only_is_refused_with_the_reason(tmp_path):
    folder = _write_folder(tmp_path, "sd15")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no diffusion_pytorch_model.safetensors but only .*\.bin, a pickle"):
        read_checkpoint(folder)


def test_a_folder_that_is_no_model_is_not_found(tmp_path):
    with pytest.raises(ModelNotFound, match=r"no model_index\.json"):
        read_checkpoint(tmp_path)


# damage


def test_no_such_file(tmp_path):
    with pytest.raises(ModelNotFound, match="There is no file"):
        read_checkpoint(tmp_path / "none.safetensors")


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "renamed.safetensors"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_is_refused_with_the_reason_whatever_its_name(tmp_path, name, legacy):
    torch.save({"weight": torch.ones(3)}, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"is a pickle file.*can run any code"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("kept", [0, 5, 100, 2000, -1])
def test_a_file_cut_short_is_named(tmp_path, kept):
    path = write_base(tmp_path, "sd15")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"sd15\.safetensors.*cut short"):
        read_checkpoint(path)


def test_a_file_of_another_format_is_named(tmp_path):
    path = tmp_path / "picture.safetensors"
    path.write_bytes(struct.pack("<Q", 40) + b"\x89PNG" * 20)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_checkpoint(path)


def test_nan_is_refused_and_named(tmp_path):
    path = write_base(tmp_path, "sd15")
    tensors = load_file(path)
    tensors["model.diffusion_model.out.2.weight"][0, 0] = torch.nan
    save_file(tensors, path, {METADATA_KEY: json.dumps(settings("sd15"))})
    with pytest.raises(CheckpointError, match=r"not numbers .* conv_out\.weight"):
        read_checkpoint(path).unet()


def test_numbers_too_large_for_the_dtype_are_refused(tmp_path):
    path = write_base(tmp_path, "sd15")
    tensors = load_file(path)
    tensors["model.diffusion_model.out.2.weight"][0, 0] = 1e6
    save_file(tensors, path, {METADATA_KEY: json.dumps(settings("sd15"))})
    assert read_checkpoint(path).unet()
    with pytest.raises(CheckpointError, match="do not fit the dtype"):
        read_checkpoint(path).unet(torch.float16)


def test_a_missing_key_is_named(tmp_path):
    path = write_base(tmp_path, "sd15")
    tensors = load_file(path)
    del tensors["model.diffusion_model.time_embed.2.bias"]
    save_file(tensors, path, {METADATA_KEY: json.dumps(settings("sd15"))})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights of its UNet \(time_embedding\.linear_2\.bias\)"):
        read_checkpoint(path).unet()


# other kinds

M = "model.diffusion_model."
FIRST = (320, 4, 3, 3)
SHAPES = {
    "flux": {f"{M}double_blocks.0.img_attn.qkv.weight": (9216, 3072), f"{M}single_blocks.0.linear1.weight": (1, 1)},
    "sd3": {f"{M}joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536)},
    "sd2": {f"{M}input_blocks.0.0.weight": FIRST, f"{M}input_blocks.1.1.proj_in.weight": (320, 320)},
    "sd15_inpaint": {f"{M}input_blocks.0.0.weight": (320, 9, 3, 3), f"{M}input_blocks.1.1.norm.weight": (320,)},
    "sdxl_refiner": {
        f"{M}label_emb.0.0.weight": (1536, 2560),
        f"{M}input_blocks.10.0.in_layers.0.weight": (1536,),
        f"{M}input_blocks.4.1.norm.weight": (768,),
    },
    "sdxl_inpaint": {
        f"{M}input_blocks.0.0.weight": (320, 9, 3, 3),
        f"{M}label_emb.0.0.weight": (1280, 2816),
        f"{M}input_blocks.4.1.norm.weight": (640,),
        f"{M}middle_block.1.norm.weight": (1280,),
    },
    "sdxl_pruned": {
        f"{M}input_blocks.0.0.weight": FIRST,
        f"{M}label_emb.0.0.weight": (1280, 2816),
        f"{M}input_blocks.4.1.norm.weight": (640,),
    },
    "lora": {"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": (1280, 8)},
    "lycoris": {"lycoris_unet_mid_block.hada_w1_a": (8, 8)},
    "vae": {"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)},
    "layer_sharing": {"hookers.layers.0.temporal_i.weight": (320, 320)},
    "layer_offsets": {"diffusion_model.out.2.bias::diff::0": (4,)},
    "transparent_decoder": {"latent_conv_in.weight": (64, 4, 1, 1), "mid_block.resnets.0.conv1.weight": (1,)},
    "controlnet": {"control_model.input_hint_block.0.weight": (16, 3, 3, 3)},
    "unet": {
        f"{name}.weight": (1,) for name in ("time_embedding.linear_1", "down_blocks.0.resnets.0.conv1", "conv_in")
    },
    "text_encoder": {"text_model.encoder.layers.0.mlp.fc1.weight": (1, 1)},
    "unknown": {"something.else": (1,)},
}


@pytest.mark.parametrize("kind", SHAPES)
def test_a_file_is_known_by_its_keys_and_shapes(kind):
    assert identify(SHAPES[kind]).name == kind


KINDS = ("flux", "sd3", "lora", "vae", "layer_sharing", "layer_offsets", "controlnet", "unknown")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_given_instead_of_a_base_is_named(tmp_path, kind):
    save_file({key: torch.zeros(1) for key in SHAPES[kind]}, tmp_path / "given.safetensors")
    title = re.escape(identify(SHAPES[kind]).title)
    with pytest.raises(CheckpointError, match=rf"given\.safetensors is {title}, not a base"):
        read_checkpoint(tmp_path / "given.safetensors")


def test_a_transparent_encoder_is_told_from_other_small_files():
    shapes = {f"blocks.{i}.{kind}": (8,) for i in range(0, 17, 2) for kind in ("weight", "bias")}
    assert identify(shapes).name == "transparent_encoder"


def test_bases_are_told_by_family(family):
    unet, _, _ = networks(family)
    assert (
        identify({key: tuple(tensor.shape) for key, tensor in single_file(FAMILIES[family], unet).items()}).family
        == family
    )
