"""Base models in diffusers' folder layout: `model_index.json`, `unet/`, `vae/`, `text_encoder/`, `text_encoder_2/`.

Weights may be one file or shards with an index, plain or of the fp16 variant; only `.safetensors` files are opened.
Configurations are the folder's own. `checkpoints.read_checkpoint` is the way in.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn

from layerdiffuse_mcp.engine.checkpoints import (
    NEEDED,
    Checkpoint,
    Part,
    PartName,
    Prediction,
    VectorUNet,
    Weights,
    make_text_encoder,
    parameter_key,
)
from layerdiffuse_mcp.engine.ldm_config import FAMILIES
from layerdiffuse_mcp.engine.ldm_keys import Origin
from layerdiffuse_mcp.engine.tensorfile import TensorFile
from layerdiffuse_mcp.errors import CheckpointError, ModelNotFound
from layerdiffuse_mcp.hub.headers import PICKLE_SUFFIXES
from layerdiffuse_mcp.hub.identify import folder_family

STEMS: dict[PartName, str] = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
VARIANTS = ("", ".fp16", ".bf16")  # the first that is there is used
# attention names of VAEs saved before diffusers 0.13
OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def read_folder(path: Path) -> Checkpoint:
    """Open a diffusers folder; loads no weights. Raises `ModelNotFound` or `CheckpointError`, saying what is wrong."""
    index_path = path / "model_index.json"
    if not index_path.is_file():
        raise ModelNotFound(
            f"{path} holds no model_index.json, so it is not a diffusers folder; "
            "give the folder that has unet/, vae/ and text_encoder/ in it, or a single .safetensors file."
        )
    pipeline = str(_json(index_path).get("_class_name", "unnamed pipeline"))
    unet_config = _json(path / "unet" / "config.json") if (path / "unet").is_dir() else {}
    family = folder_family(path.name, pipeline, unet_config)
    vae_config = _json(path / "vae" / "config.json") if (path / "vae").is_dir() else {}
    scheduler_path = path / "scheduler" / "scheduler_config.json"
    scheduler = _json(scheduler_path) if scheduler_path.is_file() else {}
    facts = FAMILIES[family]
    prediction: Prediction = "v_prediction" if scheduler.get("prediction_type") == "v_prediction" else "epsilon"
    parts: dict[PartName, Part] = {name: _part(path / name, name) for name in NEEDED[family] if (path / name).is_dir()}
    return Checkpoint(
        path=path,
        family=family,
        prediction=prediction,
        zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr", False)),
        native_size=int(unet_config.get("sample_size") or facts.native_size // 8) * 8,
        scaling_factor=float(vae_config.get("scaling_factor", facts.scaling_factor)),
        parts=parts,
        name=path.name,
        vae_fits_float16=vae_config.get("force_upcast") is False,
    )


def _part(folder: Path, name: PartName) -> Part:
    config = _json(folder / "config.json")
    origins = {_key(key, name): (file, Origin(key)) for file in _files(folder, STEMS[name]) for key in file}
    return Part(name, _maker(name, config), Weights(origins))


def _maker(name: PartName, config: dict[str, Any]) -> Callable[[], nn.Module]:
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    if name == "unet":
        return lambda: cast(nn.Module, VectorUNet.from_config(settings))
    if name == "vae":
        return lambda: cast(nn.Module, AutoencoderKL.from_config(settings))
    return lambda: make_text_encoder(settings, projected=name == "text_encoder_2")


def _files(folder: Path, stem: str) -> list[TensorFile]:
    for variant in VARIANTS:
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if not index.is_file():
            index = folder / f"{stem}{variant}.safetensors.index.json"
        if index.is_file():
            names = sorted(set(_json(index)["weight_map"].values()))
            if any(Path(name).name != name for name in names):
                raise CheckpointError(f"{index} names files outside its folder; fetch the model again.")
            return [TensorFile(folder / name) for name in names]
        single = folder / f"{stem}{variant}.safetensors"
        if single.is_file():
            return [TensorFile(single)]
    pickles = [file.name for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES]
    only = f" but only {pickles[0]}, a pickle, which can run any code it carries" if pickles else ""
    raise CheckpointError(f"{folder} holds no {stem}.safetensors{only}; fetch the .safetensors files of the model.")


def _key(key: str, name: PartName) -> str:
    if name in ("text_encoder", "text_encoder_2"):
        return parameter_key(key)
    if name == "vae":
        for old, new in OLD_ATTENTION.items():
            key = key.replace(old, new)
    return key


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as reason:
        raise CheckpointError(f"{path} is missing; fetch the model's folder whole.") from reason
    except (ValueError, OSError) as reason:
        raise CheckpointError(f"{path} cannot be read ({reason}); fetch it again.") from reason
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object; fetch it again.")
    return value
