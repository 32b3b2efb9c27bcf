"""Writing networks as single-file checkpoints in LDM names: the way back of `checkpoints.py`.

    save_single_file("pocket.safetensors", SD15, unet, vae, [text_encoder], settings={"native_size": 128})

Our own training exports with it, and tests write narrow bases that are then read as a user's files are.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from layerdiffuse_mcp.engine.weights.checkpoint import parameter_key
from layerdiffuse_mcp.engine.weights.ldm_names import (
    OPEN_CLIP_ENDS,
    OPEN_CLIP_LAYER,
    is_flat,
    unet_key_map,
    vae_key_map,
)
from layerdiffuse_mcp.families.spec import FamilySpec
from layerdiffuse_mcp.hub.headers import METADATA_KEY


def save_single_file(
    path: str | os.PathLike[str],
    spec: FamilySpec,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL | None = None,
    text_encoders: Sequence[nn.Module] = (),
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write the networks to one `.safetensors` file, in the dtypes they have; `settings` as in `checkpoints.py`."""
    tensors = single_file(spec, unet, vae, text_encoders)
    metadata = {METADATA_KEY: json.dumps(dict(settings))} if settings else None
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)


def single_file(
    spec: FamilySpec,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL | None = None,
    text_encoders: Sequence[nn.Module] = (),
) -> dict[str, Tensor]:
    """The networks' weights under the family's LDM names."""
    tensors = to_ldm(unet.state_dict(), unet_key_map(unet.config), spec.component("unet").prefix)
    if vae is not None:
        tensors |= to_ldm(vae.state_dict(), vae_key_map(vae.config), spec.component("vae").prefix)
    for encoder, name in zip(text_encoders, spec.names("text"), strict=False):
        prefix = spec.component(name).prefix
        state = {parameter_key(name): tensor for name, tensor in encoder.state_dict().items()}
        if prefix.endswith(".model."):
            tensors |= {prefix + key: tensor for key, tensor in to_open_clip(state).items()}
        else:
            tensors |= {f"{prefix}text_model.{key}": tensor for key, tensor in state.items()}
    return tensors


def to_ldm(state: Mapping[str, Tensor], names: Mapping[str, str], prefix: str = "") -> dict[str, Tensor]:
    """diffusers' names -> LDM names with `prefix`: undoes `ldm_origins`. `KeyError` names a key that has no place."""
    back = {diffusers: ldm for ldm, diffusers in names.items()}
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        ldm = back[key]
        out[prefix + ldm] = tensor[:, :, None, None] if is_flat(ldm) and tensor.ndim == 2 else tensor
    return out


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """transformers' names of a text encoder's weights -> OpenCLIP's: undoes `open_clip_origins`."""
    ends = {new: old for old, new in OPEN_CLIP_ENDS.items()}
    layers = {new: old for old, new in OPEN_CLIP_LAYER.items()}
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key == "text_projection.weight":
            renamed["text_projection"] = tensor.t().contiguous()
        elif key in ends:
            renamed[ends[key]] = tensor
        elif key.startswith("encoder.layers."):
            index, rest = key.removeprefix("encoder.layers.").split(".", 1)
            module, kind = rest.rsplit(".", 1)
            block = f"transformer.resblocks.{index}."
            if module == "self_attn.q_proj":
                joined = [state[f"encoder.layers.{index}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
                renamed[f"{block}attn.in_proj_{kind}"] = torch.cat(joined)
            elif module not in ("self_attn.k_proj", "self_attn.v_proj"):
                renamed[f"{block}{layers[module]}.{kind}"] = tensor
    return renamed
