"""Base models: a single-file LDM checkpoint or a diffusers folder -> networks, with no hub access.

    checkpoint = read_checkpoint("juggernautXL_v6.safetensors")
    checkpoint.spec.title, checkpoint.native_size    # "SDXL", 1024
    unet = checkpoint.unet()                         # weights are views of the memory-mapped file
    unet = checkpoint.unet(torch.float16, "cuda")    # converted and moved, a tensor at a time

Networks are made on the meta device and filled with `assign=True`. What shapes do not tell (heads, norm groups, native
size, the latent's scale) is the family's, unless the header's metadata key `layerdiffuse_mcp` states it, as JSON:

    {"name": "pocket", "native_size": 128, "prediction": "epsilon", "unet": {"attention_head_dim": [2, 3, 3, 2]},
     "vae": {"norm_num_groups": 16, "scaling_factor": 0.93}, "text_encoder": {"num_attention_heads": 4},
     "advice": {"guidance_scale": 4}}

`Weights` stays with the checkpoint: patches restore a base from it bit for bit instead of keeping a copy.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from layerdiffuse_mcp.engine.ldm_config import text_config, unet_config, vae_config
from layerdiffuse_mcp.engine.ldm_keys import (
    Origin,
    ldm_origins,
    open_clip_origins,
    unet_key_map,
    vae_key_map,
)
from layerdiffuse_mcp.engine.tensorfile import TensorFile, is_finite
from layerdiffuse_mcp.engine.text_encoder import TextConfig, TextEncoder
from layerdiffuse_mcp.errors import CheckpointError
from layerdiffuse_mcp.families.registry import FAMILIES, titles
from layerdiffuse_mcp.families.spec import Component, FamilySpec, LatentFormat
from layerdiffuse_mcp.hub.identify import identify

METADATA_KEY = "layerdiffuse_mcp"
V_PREDICTION_KEYS = ("v_pred", "ztsnr")
FIXED_VAE = re.compile(r"fp16[-_. ]?fix", re.IGNORECASE)


class VectorUNet(UNet2DConditionModel):
    """diffusers' UNet, whose vector conditioning (B, A) is given whole as `added_cond_kwargs["vector"]`.

    diffusers joins pooled text and size embedding inside the network; the reference hands over the finished vector, and
    so do we. Weights, names and configuration are unchanged.
    """

    def get_aug_embed(
        self, emb: Tensor, encoder_hidden_states: Tensor, added_cond_kwargs: dict[str, Any]
    ) -> Tensor | None:
        """The vector's share of the time embedding (B, E), or None for a network without vector."""
        if self.config["addition_embed_type"] is None:
            return None
        return self.add_embedding(added_cond_kwargs["vector"].to(emb.dtype))


class Weights(Mapping[str, Tensor]):
    """One network's weights on disk, by the network's own parameter names (text encoders: without `text_model.`).

    `weights[key]` is a view of the mapped file; `read` gives the very bits that the network was loaded with.
    """

    def __init__(self, origins: Mapping[str, tuple[Mapping[str, Tensor], Origin]]):
        self._origins = dict(origins)

    def __iter__(self) -> Iterator[str]:
        return iter(self._origins)

    def __len__(self) -> int:
        return len(self._origins)

    def __getitem__(self, key: str) -> Tensor:
        source, origin = self._origins[key]
        return origin.transform(source[origin.key])

    def read(self, key: str, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Tensor:
        """The weight in `dtype` (the file's unless given) on `device`. A copy only where one is needed."""
        source, origin = self._origins[key]
        if isinstance(source, TensorFile):
            stored = source.dtype(origin.key)
            if dtype not in (None, stored) or torch.device(device).type != "cpu":
                # through memory of its own: pages of the map would stay resident beside the result
                return origin.transform(source.read(origin.key)).to(device, dtype or stored)
        return self[key].to(device, dtype)


@dataclass(frozen=True)
class Part:
    """One network of a checkpoint: how to make it and where its weights are. title: what errors call it."""

    name: str
    title: str
    make: Callable[[], nn.Module]
    """Makes the network without weights; called under the meta device."""
    weights: Weights

    def build(self, dtype: torch.dtype | None, device: str | torch.device, where: str) -> nn.Module:
        """The network, filled. `where` names the file in errors. Raises `CheckpointError`."""
        with torch.device("meta"):
            module = self.make()
        wanted = {parameter_key(name): name for name in module.state_dict()}
        missing = [name for key, name in wanted.items() if key not in self.weights]
        if missing:
            raise CheckpointError(
                f"{where} lacks {len(missing)} weights of its {self.title} ({_some(missing)}); "
                "the file is incomplete: fetch it again or use another base."
            )
        state: dict[str, Tensor] = {}
        for key, name in wanted.items():
            tensor = self.weights.read(key, dtype, device)
            if not is_finite(tensor):
                raise CheckpointError(
                    f"{where} holds values that are not numbers (NaN or infinity) in {name}; "
                    "the file is damaged, or its numbers do not fit the dtype asked for: use another file or dtype."
                )
            state[name] = tensor
        try:
            module.load_state_dict(state, assign=True)
        except RuntimeError as reason:
            detail = " ".join(str(reason).split())[:300]
            raise CheckpointError(f"{where}: the {self.title} has weights of another shape: {detail}") from reason
        return module.requires_grad_(False).eval()


@dataclass(frozen=True)
class Checkpoint:
    """A base model on disk: what it is, and its networks when asked for. Holds files open, no weights."""

    path: Path
    spec: FamilySpec
    prediction: str
    """A key of `sampling.prediction.PREDICTIONS`."""
    zero_terminal_snr: bool
    """The noise schedule ends at pure noise (sigma rescaled); goes with v-prediction."""
    native_size: int
    """Pixels a side of the pictures it was trained on."""
    latent: LatentFormat
    """The family's, with the base's own scale and colours where its header states them."""
    parts: Mapping[str, Part]
    name: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The header's `layerdiffuse_mcp` entry, whole."""
    vae_fits_float16: bool = False
    """The VAE does not overflow in float16, as some families' do."""

    @property
    def family(self) -> str:
        """The family's id."""
        return self.spec.id

    @property
    def missing(self) -> tuple[str, ...]:
        """The networks that a base of this family needs and this file does not bring."""
        return tuple(name for name in self.spec.names() if name not in self.parts)

    def unet(self, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> UNet2DConditionModel:
        """The denoiser. Raises `CheckpointError`; so do the other networks."""
        return self.network("unet", dtype, device)

    def vae(self, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> AutoencoderKL:
        """The autoencoder of pictures."""
        return self.network("vae", dtype, device)

    def text_encoders(
        self, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
    ) -> tuple[TextEncoder, ...]:
        """SD 1.5: one CLIP; SDXL: two, of which the second has a projection."""
        return tuple(self.network(name, dtype, device) for name in self.spec.names("text"))

    def network(self, name: str, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Any:
        """Any of the networks, by name. Raises `CheckpointError`."""
        if name not in self.parts:
            title = self.spec.component(name).title
            raise CheckpointError(
                f"{self.path.name} has no {title}, only {_list(part.title for part in self.parts.values())}; "
                f"use a complete {self.spec.title} base or add a separate {title} file."
            )
        return self.parts[name].build(dtype, device, self.path.name)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a single-file checkpoint (`.safetensors`, LDM layout) or a diffusers folder; loads no weights.

    Raises `ModelNotFound` when there is nothing at `path`, `CheckpointError` when it is damaged, a pickle, or of no
    family: the message says what it is instead.
    """
    path = Path(path)
    if path.is_dir():
        from layerdiffuse_mcp.engine.diffusers_folder import read_folder

        return read_folder(path)
    file = TensorFile(path)
    kind = identify(file.shapes, file.metadata)
    if kind.family is None:
        raise CheckpointError(
            f"{path.name} is {kind.title}, not a base model that layer models fit; use a base of {titles()} "
            "(a single .safetensors file or a diffusers folder)."
        )
    settings = _settings(file)
    family = str(settings.get("family", kind.family))
    if family not in FAMILIES:
        raise CheckpointError(f"{path.name} says that it is of the family {family[:80]!r}; use a base of {titles()}.")
    spec = FAMILIES[family]
    v_prediction = (
        any(key in file for key in V_PREDICTION_KEYS) or file.metadata.get("modelspec.prediction_type") == "v"
    )
    prediction = str(settings.get("prediction", "v_prediction" if v_prediction else "epsilon"))
    return Checkpoint(
        path=path,
        spec=spec,
        prediction=prediction,
        zero_terminal_snr=bool(settings.get("zero_terminal_snr", "ztsnr" in file)),
        native_size=int(settings.get("native_size", spec.native_size)),
        latent=replace(
            spec.latent,
            scale=settings.get("vae", {}).get("scaling_factor", spec.latent.scale),
            rgb_factors=settings.get("latent_rgb", spec.latent.rgb_factors),
        ),
        parts=_single_file_parts(file, spec, settings),
        name=str(settings.get("name", path.stem)),
        settings=settings,
        vae_fits_float16=spec.vae_fits_float16,
    )


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
    part = _vae_part(file, file.shapes, checkpoint.spec, _settings(file).get("vae", {}), prefix)
    fixed = checkpoint.spec.vae_fits_float16 or FIXED_VAE.search(str(path)) is not None
    return replace(checkpoint, parts={**checkpoint.parts, "vae": part}, vae_fits_float16=fixed)


def unet_from_ldm(
    tensors: Mapping[str, Tensor], spec: FamilySpec, overrides: Mapping[str, Any] | None = None
) -> UNet2DConditionModel:
    """A UNet that holds LDM `tensors` as they are, under the family's prefix; `overrides` as in `unet_config`."""
    return _from_ldm(_unet_part(tensors, _shapes(tensors), spec, overrides or {}), "The UNet")


def text_encoder_from_ldm(
    tensors: Mapping[str, Tensor], overrides: Mapping[str, Any] | None = None, prefix: str = ""
) -> TextEncoder:
    """A text encoder that holds `tensors` as they are: transformers' or OpenCLIP's names below `prefix`."""
    component = Component("text_encoder", "text", "text encoder", prefix)
    return _from_ldm(_text_part(tensors, _shapes(tensors), component, overrides or {}), "The text encoder")


def parameter_key(name: str) -> str:
    """A parameter's name as `Weights` has it: files put `text_model.` before some, by their writer's version."""
    return name.removeprefix("text_model.")


def make_text_encoder(config: Mapping[str, Any], projected: bool) -> TextEncoder:
    """A text encoder with weights to be filled in; of `config` what `TextConfig` knows counts."""
    known = {field.name: config[field.name] for field in fields(TextConfig) if field.name in config}
    return TextEncoder(TextConfig(**known), projected)


def _from_ldm(part: Part, where: str) -> Any:
    return part.build(None, "cpu", where)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _below(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> dict[str, tuple[int, ...]]:
    return {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}


def _single_file_parts(file: TensorFile, spec: FamilySpec, settings: Mapping[str, Any]) -> dict[str, Part]:
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


def _settings(file: TensorFile) -> dict[str, Any]:
    try:
        settings = json.loads(file.metadata.get(METADATA_KEY, "{}"))
    except ValueError as reason:
        raise CheckpointError(
            f"{file.path.name}: its metadata entry {METADATA_KEY} is not JSON; write the file again."
        ) from reason
    if not isinstance(settings, dict):
        raise CheckpointError(f"{file.path.name}: its metadata entry {METADATA_KEY} must be a JSON object.")
    return settings


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _list(names: Iterable[str]) -> str:
    return " and ".join(names)
