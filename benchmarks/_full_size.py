"""Full-size networks and files with random weights: what the pocket model is too small to show.

Weights are cut from one block of random numbers, so gigabytes are made at the speed of the memory. Nothing recognisable
comes out of such a network; it computes as much and takes as much memory as a real one.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from layerdiffuse_mcp.engine.weights.ldm_export import to_ldm
from layerdiffuse_mcp.engine.weights.ldm_names import unet_key_map
from layerdiffuse_mcp.engine.weights.networks import VectorUNet

SD15: Mapping[str, Any] = {"cross_attention_dim": 768}
BLOCK = 1 << 24


def sdxl(width: int = 320) -> dict[str, Any]:
    """SDXL's layout; 320 is its own width, a smaller multiple of 64 makes the same network narrower."""
    return {
        "block_out_channels": (width, 2 * width, 4 * width),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (width // 64, width // 32, width // 16),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }


def ldm_shapes(unet: VectorUNet) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a UNet's weights in LDM layout, without a prefix."""
    return {key: tuple(t.shape) for key, t in to_ldm(unet.state_dict(), unet_key_map(unet.config)).items()}


def unet_without_weights(config: Mapping[str, Any]) -> VectorUNet:
    """A UNet of `config` on the meta device."""
    with torch.device("meta"):
        return VectorUNet(**config)


def fill(module: nn.Module, dtype: torch.dtype, seed: int = 0) -> Any:
    """`module`, made on the meta device, with random weights that keep activations of ordinary size."""
    state = random_tensors(((name, tuple(t.shape)) for name, t in module.state_dict().items()), dtype, seed)
    module.load_state_dict(state, assign=True)
    return module.requires_grad_(False).eval()


def random_tensors(
    shapes: Iterable[tuple[str, tuple[int, ...]]], dtype: torch.dtype, seed: int = 0, gain: float = 0.7
) -> dict[str, Tensor]:
    """Tensors of these names and shapes: matrices and kernels of std gain / sqrt(inputs), norms' scales about 1."""
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed))
    tensors: dict[str, Tensor] = {}
    begin = 0
    for name, shape in shapes:
        size = torch.Size(shape)
        scale = gain / max(1, size[1:].numel()) ** 0.5 if len(size) > 1 else 0.02
        tensor = torch.empty(size.numel(), dtype=dtype)
        for at in range(0, len(tensor), BLOCK // 2):
            part = tensor[at : at + BLOCK // 2]
            begin = (begin + 12345) % (BLOCK // 2)
            torch.mul(block[begin : begin + len(part)], scale, out=part) if dtype == torch.float32 else part.copy_(
                block[begin : begin + len(part)] * scale
            )
        if len(size) == 1 and name.endswith("weight"):
            tensor += 1
        tensors[name] = tensor.view(size)
    return tensors


def write(path: Path, shapes: Mapping[str, tuple[int, ...]], gain: float = 0.7, seed: int = 0) -> None:
    """A `.safetensors` file of random float16 tensors."""
    save_file(random_tensors(shapes.items(), torch.float16, seed, gain), path)


def too_little_memory(gigabytes: float) -> bool:
    """Whether less than this is free; says so, since a benchmark is left out then."""
    free = psutil.virtual_memory().available / 1e9
    if free < gigabytes:
        print(f"left out: it takes {gigabytes:.0f} GB, and {free:.1f} GB are free")
    return free < gigabytes
