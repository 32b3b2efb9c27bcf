"""Base models: a single-file LDM checkpoint or a diffusers folder -> networks, with no hub access.

    checkpoint = read_checkpoint("juggernautXL_v6.safetensors")
    checkpoint.family, checkpoint.native_size        # "sdxl", 1024
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
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from layerdiffuse_mcp.engine.ldm_config import FAMILIES, Family, text_config, unet_config, vae_config
from layerdiffuse_mcp.engine.ldm_keys import (
    TEXT_PREFIXES,
    UNET_PREFIX,
    VAE_PREFIX,
    Origin,
    ldm_origins,
    open_clip_origins,
    unet_key_map,
    vae_key_map,
)
from layerdiffuse_mcp.engine.tensorfile import TensorFile, is_finite
from layerdiffuse_mcp.engine.text_encoder import TextConfig, TextEncoder
from layerdiffuse_mcp.errors import CheckpointError
from layerdiffuse_mcp.hub.identify import identify

PartName = Literal["unet", "vae", "text_encoder", "text_encoder_2"]
Prediction = Literal["epsilon", "v_prediction"]
METADATA_KEY = "layerdiffuse_mcp"
TITLES: dict[PartName, str] = {
    "unet": "UNet",
    "vae": "VAE",
    "text_encoder": "text encoder",
    "text_encoder_2": "second text encoder",
}
NEEDED: dict[Family, tuple[PartName, ...]] = {
    "sd15": ("unet", "vae", "text_encoder"),
    "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2"),
}
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
    """One network of a checkpoint: how to make it and where its weights are."""

    name: PartName
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
                f"{where} lacks {len(missing)} weights of its {TITLES[self.name]} ({_some(missing)}); "
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
            raise CheckpointError(
                f"{where}: the {TITLES[self.name]} has weights of another shape: {detail}"
            ) from reason
        return module.requires_grad_(False).eval()


@dataclass(frozen=True)
class Checkpoint:
    """A base model on disk: what it is, and its networks when asked for. Holds files open, no weights."""

    path: Path
    family: Family
    prediction: Prediction
    zero_terminal_snr: bool
    """The noise schedule ends at pure noise (sigma rescaled); goes with v-prediction."""
    native_size: int
    """Pixels a side of the pictures it was trained on."""
    scaling_factor: float
    """Latents are multiplied by this before they are noised."""
    parts: Mapping[PartName, Part]
    name: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The header's `layerdiffuse_mcp` entry, whole."""
    vae_fits_float16: bool = False
    """The VAE is known not to overflow in float16, as the one that SDXL was published with does."""

    @property
    def missing(self) -> tuple[PartName, ...]:
        """The networks that a base of this family needs and this file does not bring."""
        return tuple(part for part in NEEDED[self.family] if part not in self.parts)

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
        return tuple(self.network(name, dtype, device) for name in NEEDED[self.family] if name.startswith("text"))

    def network(self, name: PartName, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Any:
        """Any of the networks, by name. Raises `CheckpointError`."""
        if name not in self.parts:
            raise CheckpointError(
                f"{self.path.name} has no {TITLES[name]}, only {_list(TITLES[part] for part in self.parts)}; "
                f"use a complete {FAMILIES[self.family].title} base or add a separate {TITLES[name]} file."
            )
        return self.parts[name].build(dtype, device, self.path.name)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a single-file checkpoint (`.safetensors`, LDM layout) or a diffusers folder; loads no weights.

    Raises `ModelNotFound` when there is nothing at `path`, `CheckpointError` when it is damaged, a pickle, or not an
    SD 1.5 or SDXL base: the message says what it is instead.
    """
    path = Path(path)
    if path.is_dir():
        from layerdiffuse_mcp.engine.diffusers_folder import read_folder

        return read_folder(path)
    file = TensorFile(path)
    kind = identify(file.shapes, file.metadata)
    if kind.family is None:
        raise CheckpointError(
            f"{path.name} is {kind.title}, not a base model that layer models fit; use an SD 1.5 or SDXL base "
            "(a single .safetensors file or a diffusers folder)."
        )
    settings = _settings(file)
    family: Family = settings.get("family", kind.family)
    facts = FAMILIES[family]
    v_prediction = (
        any(key in file for key in V_PREDICTION_KEYS) or file.metadata.get("modelspec.prediction_type") == "v"
    )
    prediction: Prediction = settings.get("prediction", "v_prediction" if v_prediction else "epsilon")
    return Checkpoint(
        path=path,
        family=family,
        prediction=prediction,
        zero_terminal_snr=bool(settings.get("zero_terminal_snr", "ztsnr" in file)),
        native_size=int(settings.get("native_size", facts.native_size)),
        scaling_factor=float(settings.get("vae", {}).get("scaling_factor", facts.scaling_factor)),
        parts=_single_file_parts(file, family, settings),
        name=str(settings.get("name", path.stem)),
        settings=settings,
    )


def with_vae(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """The base with the VAE of another `.safetensors` file, in LDM layout.

    A file that names itself an fp16 fix (as sdxl-vae-fp16-fix does) is taken for one that does not overflow in float16.
    Raises `ModelNotFound` when there is nothing at `path`, `CheckpointError` when it is no such VAE.
    """
    file = TensorFile(path)
    prefix = VAE_PREFIX if any(key.startswith(VAE_PREFIX) for key in file) else ""
    if prefix + "decoder.conv_in.weight" not in file or prefix + "decoder.up.0.block.0.conv1.weight" not in file:
        raise CheckpointError(
            f"{path.name} is {identify(file.shapes, file.metadata).title}, not a VAE in LDM layout; "
            "use the single-file version of the VAE, with keys like decoder.up.0.block.0.conv1.weight."
        )
    part = _vae_part(file, file.shapes, checkpoint.family, _settings(file).get("vae", {}), prefix)
    fixed = FIXED_VAE.search(str(path)) is not None
    return replace(checkpoint, parts={**checkpoint.parts, "vae": part}, vae_fits_float16=fixed)


def unet_from_ldm(
    tensors: Mapping[str, Tensor], overrides: Mapping[str, Any] | None = None, prefix: str = UNET_PREFIX
) -> UNet2DConditionModel:
    """A UNet that holds LDM `tensors` (their keys begin with `prefix`) as they are; `overrides` as in `unet_config`."""
    return _from_ldm(_unet_part(tensors, _shapes(tensors), overrides or {}, prefix), "The UNet")


def vae_from_ldm(
    tensors: Mapping[str, Tensor],
    family: Family,
    overrides: Mapping[str, Any] | None = None,
    prefix: str = VAE_PREFIX,
) -> AutoencoderKL:
    """An autoencoder that holds LDM `tensors` as they are; `overrides` as in `vae_config`."""
    return _from_ldm(_vae_part(tensors, _shapes(tensors), family, overrides or {}, prefix), "The VAE")


def text_encoder_from_ldm(
    tensors: Mapping[str, Tensor], overrides: Mapping[str, Any] | None = None, prefix: str = ""
) -> TextEncoder:
    """A text encoder that holds `tensors` as they are: transformers' or OpenCLIP's names below `prefix`."""
    return _from_ldm(_text_part(tensors, _shapes(tensors), "text_encoder", overrides or {}, prefix), "The text encoder")


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


def _single_file_parts(file: TensorFile, family: Family, settings: Mapping[str, Any]) -> dict[PartName, Part]:
    shapes = file.shapes
    parts: dict[PartName, Part] = {"unet": _unet_part(file, shapes, settings.get("unet", {}), UNET_PREFIX)}
    if any(key.startswith(VAE_PREFIX + "decoder.") for key in shapes):
        parts["vae"] = _vae_part(file, shapes, family, settings.get("vae", {}), VAE_PREFIX)
    names: tuple[PartName, ...] = ("text_encoder", "text_encoder_2")
    for name, prefix in zip(names, TEXT_PREFIXES[family], strict=False):
        if any(key.startswith(prefix) for key in shapes):
            parts[name] = _text_part(file, shapes, name, settings.get(name, {}), prefix)
    return parts


def _unet_part(
    source: Mapping[str, Tensor], shapes: dict[str, tuple[int, ...]], overrides: Mapping[str, Any], prefix: str
) -> Part:
    config = unet_config(_below(shapes, prefix), overrides)
    origins = ldm_origins(shapes, unet_key_map(config), prefix)
    return Part("unet", lambda: VectorUNet(**config), _weights(source, origins))


def _vae_part(
    source: Mapping[str, Tensor],
    shapes: dict[str, tuple[int, ...]],
    family: Family,
    overrides: Mapping[str, Any],
    prefix: str,
) -> Part:
    config = vae_config(_below(shapes, prefix), family, overrides)
    origins = ldm_origins(shapes, vae_key_map(config), prefix)
    return Part("vae", lambda: AutoencoderKL(**config), _weights(source, origins))


def _text_part(
    source: Mapping[str, Tensor],
    shapes: dict[str, tuple[int, ...]],
    name: PartName,
    overrides: Mapping[str, Any],
    prefix: str,
) -> Part:
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
    return Part(name, lambda: make_text_encoder(config, projected), weights)


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
