"""The files that whole runs are drawn with: two narrow bases, every layer file, the files of transparency.

    write_models(folder, Recipe(salt))      # 760 MB: some layers of the released formats cannot be made narrow

They are what a user would put into a models folder: complete, in a single file each, under the released names and key
names. Which tensors a file has is read off our own networks (on the meta device, so nothing is computed); what is in a
tensor follows from its name. A wrong key or shape thus gives other weights, and another picture.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from layerdiffuse_mcp.engine.layers.attention_sharing_file import SharingModel
from layerdiffuse_mcp.engine.text.clip import TextConfig, TextEncoder
from layerdiffuse_mcp.engine.transparency.networks import OffsetEncoder, TransparentDecoder
from layerdiffuse_mcp.engine.weights.ldm_export import single_file
from layerdiffuse_mcp.engine.weights.single_file import METADATA_KEY
from layerdiffuse_mcp.families.registry import FAMILIES, METHODS
from layerdiffuse_mcp.families.spec import LayerMethod

from .networks import CONFIGS, base_shapes
from .recipe import Recipe

RANK = 256  # of the released attention-sharing files
TEXT_HEADS = 4
TEXT_WIDTHS: dict[str, tuple[int, ...]] = {"sd15": (64,), "sdxl": (32, 32)}
VAE: dict[str, Any] = {
    "block_out_channels": (32, 32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
DECODER_WIDTHS = (8, 8, 16, 16, 32, 32, 32)

# Random weights are too quiet or too loud in these places: the pictures would be clipped, their alpha would not count,
# and a control picture would be lost on its way through eight layers.
LOUDER = {
    "transparent_decoder.conv_out.weight": (0.7, 0.0),
    "transparent_decoder.conv_out.bias": (1.0, 0.5),
    "transparent_encoder.blocks.16.weight": (16.0, 0.0),
}
LOUDER_CONTROL = 3.4


def write_models(folder: Path, recipe: Recipe) -> None:
    """Write `narrow-<family>.safetensors` and the official layer and transparency files of both families."""
    for family in CONFIGS:
        write_base(folder, recipe, family)
    for method in (method for method in METHODS.values() if method.family in CONFIGS):
        save_file(_layer_tensors(recipe, method), folder / method.file)


def write_base(folder: Path, recipe: Recipe, family: str) -> Path:
    """Write `narrow-<family>.safetensors`, whose path is returned, and the family's transparency files."""
    path = folder / f"narrow-{family}.safetensors"
    base = {key: recipe.weight(key, shape) for key, shape in _base_shapes(family).items()}
    save_file(base, path, {METADATA_KEY: json.dumps(_settings(family))})
    for name, network in _transparency(family).items():
        save_file(_transparency_tensors(recipe, name, network), folder / f"{name}.safetensors")
    return path


def _settings(family: str) -> dict[str, Any]:
    """What the shapes in a base's file do not tell."""
    encoders = ("text_encoder", "text_encoder_2")[: len(TEXT_WIDTHS[family])]
    return {
        "native_size": 128,
        "unet": {"attention_head_dim": CONFIGS[family]["attention_head_dim"]},
        **{encoder: {"num_attention_heads": TEXT_HEADS} for encoder in encoders},
    }


def _base_shapes(family: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**CONFIGS[family]), AutoencoderKL(**VAE)
        encoders = [_text_encoder(width, number == 1) for number, width in enumerate(TEXT_WIDTHS[family])]
        return {key: tensor.shape for key, tensor in single_file(FAMILIES[family], unet, vae, encoders).items()}


def _text_encoder(width: int, projected: bool) -> TextEncoder:
    """A CLIP of three layers with the whole vocabulary."""
    config = TextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=3,
        num_attention_heads=TEXT_HEADS,
        projection_dim=width,
    )
    return TextEncoder(config, projected)


def _transparency(family: str) -> dict[str, nn.Module]:
    """A family's transparent encoder and decoder, by their file names without suffix."""
    codec = FAMILIES[family].codec
    assert codec is not None
    with torch.device("meta"):
        networks = {"encoder": OffsetEncoder(), "decoder": TransparentDecoder(DECODER_WIDTHS)}
    return {Path(getattr(codec, kind)).stem: network for kind, network in networks.items()}


def _transparency_tensors(recipe: Recipe, name: str, network: nn.Module) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for key, meta in network.state_dict().items():
        full = f"{name}.{key}"
        factor, added = next((change for end, change in LOUDER.items() if full.endswith(end)), (1.0, 0.0))
        tensors[key] = recipe.weight(full, meta.shape) * factor + added
    return tensors


def _layer_tensors(recipe: Recipe, method: LayerMethod) -> dict[str, Tensor]:
    """A layer file that fits the narrow base of its family, its control encoder louder."""
    file = layer_tensors(recipe, method)
    control = {key for key in file if key.startswith("kwargs_encoder") and key.endswith("weight")}
    return {key: tensor * LOUDER_CONTROL if key in control else tensor for key, tensor in file.items()}


def layer_tensors(recipe: Recipe, method: LayerMethod) -> dict[str, Tensor]:
    """A layer file that fits the narrow base of its family, as the recipe says."""
    if method.adapter == "weight_offset":
        return _offset_tensors(recipe, method)
    with torch.device("meta"):
        model = SharingModel(UNet2DConditionModel(**CONFIGS[method.family]), method.frames, RANK, bool(method.inputs))
    return recipe.sharing_file(method.id, {key: tensor.shape for key, tensor in model.state_dict().items()})


def _offset_tensors(recipe: Recipe, method: LayerMethod) -> dict[str, Tensor]:
    """An SDXL layer file for the narrow base: low-rank for the attention method, whole offsets for the others."""
    shapes = base_shapes(method.family)
    if method.id == "layer_xl_transparent_attn":
        return recipe.lora_file(method.id, shapes)
    return recipe.diff_file(method.id, shapes, 4 * len(method.inputs))
