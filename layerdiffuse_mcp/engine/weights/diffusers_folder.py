"""Base models in diffusers' folder layout: `model_index.json`, and a folder a network, named as on the family's card.

Weights may be one file or shards with an index, plain or of the fp16 variant; only `.safetensors` files are opened.
Configurations are the folder's own; which class a network is of the card says, never the folder, which could name any.
`reader.read_checkpoint` is the way in.
"""

import itertools
import json
import os
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from layerdiffuse_mcp.engine.weights.checkpoint import Checkpoint, Part, Weights, parameter_key
from layerdiffuse_mcp.engine.weights.ldm_names import Origin
from layerdiffuse_mcp.engine.weights.networks import VectorUNet, make_text_encoder
from layerdiffuse_mcp.engine.weights.tensor_file import TensorFile
from layerdiffuse_mcp.errors import CheckpointError, ModelNotFound
from layerdiffuse_mcp.families.registry import folder_family
from layerdiffuse_mcp.families.spec import Component, Phase
from layerdiffuse_mcp.hub.headers import PICKLE_SUFFIXES

STEM = "diffusion_pytorch_model"
STEMS: dict[Phase, tuple[str, ...]] = {"text": ("model", STEM), "denoising": (STEM,), "pictures": (STEM,)}
# text encoders are transformers' as a rule, the others diffusers'
VARIANTS = ("", ".fp16", ".bf16")  # the first that is there is used
# attention names of VAEs saved before diffusers 0.13
OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def read_folder(path: Path) -> Checkpoint:
    """Open a diffusers folder; loads no weights. Raises `ModelNotFound` or `CheckpointError`, saying what is wrong."""
    index_path = path / "model_index.json"
    if not os.path.isfile(index_path):
        raise ModelNotFound(
            f"{path} holds no model_index.json, so it is not a diffusers folder; "
            "give the folder that has unet/, vae/ and text_encoder/ in it, or a single .safetensors file."
        )
    pipeline = str(_json(index_path).get("_class_name", "unnamed pipeline"))

    def config(network: str) -> dict[str, Any]:
        return _json(path / network / "config.json") if os.path.isdir(path / network) else {}

    spec = folder_family(path.name, pipeline, config)
    vae_config = config(spec.names("pictures")[0])
    scheduler_path = path / "scheduler" / "scheduler_config.json"
    scheduler = _json(scheduler_path) if os.path.isfile(scheduler_path) else {}
    prediction = "v_prediction" if scheduler.get("prediction_type") == "v_prediction" else "epsilon"
    parts = {one.name: _part(path / one.name, one) for one in spec.components if os.path.isdir(path / one.name)}
    return Checkpoint(
        path=path,
        spec=spec,
        prediction=prediction,
        zero_terminal_snr=bool(scheduler.get("rescale_betas_zero_snr", False)),
        native_size=spec.native_size_of(config(spec.denoiser)),
        latent=replace(
            spec.latent,
            scale=tuple(1 / deviation for deviation in vae_config.get("latents_std") or ())
            or vae_config.get("scaling_factor", spec.latent.scale),
            shift=tuple(vae_config.get("latents_mean") or ()) or vae_config.get("shift_factor") or spec.latent.shift,
        ),
        parts=parts,
        name=path.name,
        vae_fits_float16=spec.vae_fits_float16 or vae_config.get("force_upcast") is False,
    )


def _part(folder: Path, component: Component) -> Part:
    config, files = read_config(folder), weight_files(folder, STEMS[component.phase])
    if component.network:
        origins = {_renamed(key, component): (file, Origin(key)) for file in files for key in file}
        return Part(component.name, component.title, partial(_made, component.network, config), Weights(origins))
    origins = {_key(key, component): (file, Origin(key)) for file in files for key in file}
    projected = "text_projection.weight" in origins
    makers: dict[str, Callable[[], Any]] = {
        "denoising": lambda: VectorUNet.from_config(config),
        "pictures": lambda: AutoencoderKL.from_config(config),
        "text": lambda: make_text_encoder(config, projected),
    }
    return Part(component.name, component.title, makers[component.phase], Weights(origins))


def _made(network: str, config: Mapping[str, Any]) -> nn.Module:
    """A network of the class that its family's card names: diffusers makes its own of a configuration, transformers
    of an object that holds one.
    """
    kind: Any = pkgutil.resolve_name(network)
    hook = register_module_parameter_registration_hook(cast(Any, _without_memory))  # may return one, as torch says
    try:
        with torch.device("cpu"):  # what is in no file, such as positions, is computed now
            return (
                kind.from_config(config) if hasattr(kind, "from_config") else kind(kind.config_class.from_dict(config))
            )
    finally:
        hook.remove()


def _without_memory(_module: nn.Module, _name: str, parameter: nn.Parameter) -> nn.Parameter:
    if parameter.is_meta:  # already one of the network's, which gets a second name
        return parameter
    return nn.Parameter(parameter.to("meta"), requires_grad=False)


def read_config(folder: Path) -> dict[str, Any]:
    """A network's configuration; raises CheckpointError."""
    return {key: value for key, value in _json(folder / "config.json").items() if not key.startswith("_")}


def weight_files(folder: Path, stems: Sequence[str] = (STEM,)) -> list[TensorFile]:
    """The files that hold a network's weights, called by the first of `stems` that is there; raises CheckpointError."""
    for stem, variant in itertools.product(stems, VARIANTS):
        index = folder / f"{stem}.safetensors.index{variant}.json"
        if not os.path.isfile(index):
            index = folder / f"{stem}{variant}.safetensors.index.json"
        if os.path.isfile(index):
            names = sorted(set(_json(index)["weight_map"].values()))
            if any(Path(name).name != name for name in names):
                raise CheckpointError(f"{index} names files outside its folder; fetch the model again.")
            return [TensorFile(folder / name) for name in names]
        single = folder / f"{stem}{variant}.safetensors"
        if os.path.isfile(single):
            return [TensorFile(single)]
    pickles = [file.name for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES]
    only = f" but only {pickles[0]}, a pickle, which can run any code it carries" if pickles else ""
    raise CheckpointError(f"{folder} holds no {stems[0]}.safetensors{only}; fetch the .safetensors files of the model.")


def _renamed(key: str, component: Component) -> str:
    """A weight's name in a network of somebody else's, whose versions may have it otherwise than files do."""
    for now in (new for _, new in component.renamed):
        if key.startswith(now):
            return key
    for old, new in component.renamed:
        if key.startswith(old):
            return new + key.removeprefix(old)
    return parameter_key(key)


def _key(key: str, component: Component) -> str:
    if component.phase == "text":
        return parameter_key(key)
    if component.phase == "pictures":
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
