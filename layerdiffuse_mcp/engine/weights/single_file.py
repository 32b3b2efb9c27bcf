"""Single-file checkpoints in LDM layout: which networks a file holds, under which names."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from layerdiffuse_mcp.engine.weights.checkpoint import Checkpoint, Part, Weights, parameter_key
from layerdiffuse_mcp.engine.weights.ldm_config import text_config, unet_config, vae_config
from layerdiffuse_mcp.engine.weights.ldm_names import Origin, ldm_origins, open_clip_origins, unet_key_map, vae_key_map
from layerdiffuse_mcp.engine.weights.networks import VectorUNet, make_text_encoder
from layerdiffuse_mcp.engine.weights.tensor_file import TensorFile
from layerdiffuse_mcp.errors import CheckpointError
from layerdiffuse_mcp.families.spec import Component, FamilySpec
from layerdiffuse_mcp.hub.headers import METADATA_KEY
from layerdiffuse_mcp.hub.identify import identify

V_PREDICTION_KEYS = ("v_pred", "ztsnr")


FIXED_VAE = re.compile(r"fp16[-_. ]?fix", re.IGNORECASE)


def with_vae(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """The base with the VAE of another `.safetensors` file, in LDM layout.

    A file that names itself an fp16 fix (as sdxl-vae-fp16-fix does) is taken for one that does not overflow in float16.
    Raises `ModelNotFound` when there is nothing at `path`, `CheckpointError` when it is no such VAE.
    """
    file = TensorFile(path)
    component = checkpoint.spec.component("vae")
    prefix = component.prefix if any(key.startswith(component.prefix) for key in file) else ""
    if prefix + "decoder.conv_in.weight" not in file or prefix + "decoder.up.0.block.0.conv1.weight" not in file:
        raise CheckpointError(
            f"{path.name} is {identify(file.shapes, file.metadata).title}, not a VAE in LDM layout; "
            "use the single-file version of the VAE, with keys like decoder.up.0.block.0.conv1.weight."
        )
    part = _vae_part(file, file.shapes, checkpoint.spec, header_settings(file).get("vae", {}), prefix)
    fixed = checkpoint.spec.vae_fits_float16 or FIXED_VAE.search(str(path)) is not None
    return replace(checkpoint, parts={**checkpoint.parts, "vae": part}, vae_fits_float16=fixed)


def unet_from_ldm(
    tensors: Mapping[str, Tensor], spec: FamilySpec, overrides: Mapping[str, Any] | None = None
) -> UNet2DConditionModel:
    """A UNet that holds LDM `tensors` as they are, under the family's prefix; `overrides` as in `unet_config`."""
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    part = _unet_part(tensors, shapes, spec, overrides or {})
    return cast(UNet2DConditionModel, part.build(None, "cpu", "The UNet"))


def _below(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> dict[str, tuple[int, ...]]:
    return {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}


def single_file_parts(file: TensorFile, spec: FamilySpec, settings: Mapping[str, Any]) -> dict[str, Part]:
    shapes = file.shapes
    parts: dict[str, Part] = {"unet": _unet_part(file, shapes, spec, settings.get("unet", {}))}
    vae = spec.component("vae").prefix
    if any(key.startswith(vae + "decoder.") for key in shapes):
        parts["vae"] = _vae_part(file, shapes, spec, settings.get("vae", {}), vae)
    for name in spec.names("text"):
        if any(key.startswith(spec.component(name).prefix) for key in shapes):
            parts[name] = _text_part(file, shapes, spec.component(name), settings.get(name, {}))
    return parts


def _unet_part(
    source: Mapping[str, Tensor], shapes: dict[str, tuple[int, ...]], spec: FamilySpec, overrides: Mapping[str, Any]
) -> Part:
    component = spec.component("unet")
    config = unet_config(_below(shapes, component.prefix), spec, overrides)
    origins = ldm_origins(shapes, unet_key_map(config), component.prefix)
    return Part("unet", component.title, lambda: VectorUNet(**config), _weights(source, origins))


def _vae_part(
    source: Mapping[str, Tensor],
    shapes: dict[str, tuple[int, ...]],
    spec: FamilySpec,
    overrides: Mapping[str, Any],
    prefix: str,
) -> Part:
    config = vae_config(_below(shapes, prefix), spec, overrides)
    origins = ldm_origins(shapes, vae_key_map(config), prefix)
    return Part("vae", spec.component("vae").title, lambda: AutoencoderKL(**config), _weights(source, origins))


def _text_part(
    source: Mapping[str, Tensor],
    shapes: dict[str, tuple[int, ...]],
    component: Component,
    overrides: Mapping[str, Any],
) -> Part:
    prefix = component.prefix
    open_clip = prefix + "ln_final.weight" in shapes
    if open_clip:
        origins = open_clip_origins(shapes, prefix)
    else:
        keys = (key for key in shapes if key.startswith(prefix))
        origins = {parameter_key(key.removeprefix(prefix)): Origin(key) for key in keys}
    weights = _weights(source, origins)
    # a split or transposed weight has another shape than the file's: ask the views
    config = text_config({key: tuple(tensor.shape) for key, tensor in weights.items()}, open_clip, overrides)
    projected = "text_projection.weight" in weights
    return Part(component.name, component.title, lambda: make_text_encoder(config, projected), weights)


def _weights(source: Mapping[str, Tensor], origins: Mapping[str, Origin]) -> Weights:
    return Weights({key: (source, origin) for key, origin in origins.items()})


def header_settings(file: TensorFile) -> dict[str, Any]:
    try:
        settings = json.loads(file.metadata.get(METADATA_KEY, "{}"))
    except ValueError as reason:
        raise CheckpointError(
            f"{file.path.name}: its metadata entry {METADATA_KEY} is not JSON; write the file again."
        ) from reason
    if not isinstance(settings, dict):
        raise CheckpointError(f"{file.path.name}: its metadata entry {METADATA_KEY} must be a JSON object.")
    return settings
