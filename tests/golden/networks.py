"""The two narrow base networks of the golden cases, built as any base is: LDM names through our own converter."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from layerdiffuse_mcp.engine.types import Conditioning
from layerdiffuse_mcp.engine.weights.ldm_export import to_ldm
from layerdiffuse_mcp.engine.weights.ldm_names import unet_key_map
from layerdiffuse_mcp.engine.weights.single_file import unet_from_ldm
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.families.stable_diffusion import UNET_PREFIX

from .recipe import Recipe

CONFIGS: Mapping[str, dict[str, Any]] = {
    "sd15": {
        "block_out_channels": (32, 64, 128, 128),
        "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        "attention_head_dim": 8,
        "cross_attention_dim": 64,
    },
    "sdxl": {
        "block_out_channels": (32, 64, 128),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (2, 4, 8),
        "cross_attention_dim": 64,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 1568,
    },
}


def base_shapes(family: str) -> dict[str, tuple[int, ...]]:
    """The LDM keys (without prefix) and shapes of a narrow base."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**CONFIGS[family])
    return {key: tuple(tensor.shape) for key, tensor in to_ldm(unet.state_dict(), unet_key_map(unet.config)).items()}


def base_unet(recipe: Recipe, family: str) -> UNet2DConditionModel:
    """A narrow base as our own loader makes it."""
    shapes = {UNET_PREFIX + key: shape for key, shape in base_shapes(family).items()}
    tensors = {key: recipe.weight(key, shape) for key, shape in shapes.items()}
    return unet_from_ldm(tensors, FAMILIES[family], {"attention_head_dim": CONFIGS[family]["attention_head_dim"]})


def conditionings(recipe: Recipe, family: str) -> tuple[Conditioning, Conditioning]:
    """The positive and the negative conditioning of a family."""
    cond, uncond = (recipe.noise(f"{family}.{name}", (1, 77, 64)) for name in ("cond", "uncond"))
    if family == "sd15":
        return Conditioning(cond), Conditioning(uncond)
    y, uy = (recipe.noise(f"{family}.{name}", (1, 1568)) for name in ("y", "uy"))
    return Conditioning(cond, y), Conditioning(uncond, uy)
