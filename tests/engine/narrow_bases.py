"""The smallest bases of both families, one block a level, for tests of what holds their weights."""

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from layerdiffuse_mcp.engine.checkpoints import Checkpoint, VectorUNet, make_text_encoder, read_checkpoint
from layerdiffuse_mcp.engine.ldm_export import save_single_file
from layerdiffuse_mcp.engine.sampling.denoiser import Conditioning

CONTEXT, VECTOR = 16, 16 + 6 * 256
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {
        "block_out_channels": (8, 8, 16, 16),
        "attention_head_dim": 2,
        "cross_attention_dim": CONTEXT,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    "sdxl": {
        "block_out_channels": (8, 16, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (2, 2, 4),
        "cross_attention_dim": CONTEXT,
        "layers_per_block": 2,
        "norm_num_groups": 4,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": VECTOR,
    },
}
TEXT = {"vocab_size": 50, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}
TEXT |= {"num_attention_heads": 2, "projection_dim": 8}
TEXTS: tuple[dict[str, Any], ...] = (TEXT | {"hidden_act": "quick_gelu"}, TEXT | {"hidden_act": "gelu"})
SETTINGS = {
    "name": "narrow",
    "native_size": 64,
    "vae": {"norm_num_groups": 4, "scaling_factor": 0.5},
    "text_encoder": {"num_attention_heads": 2},
    "text_encoder_2": {"num_attention_heads": 2},
}


def networks(family: str) -> tuple[VectorUNet, AutoencoderKL, list[Any]]:
    """A UNet, a VAE and text encoders with random weights."""
    torch.manual_seed(7)
    unet = VectorUNet(**UNETS[family])
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
    )
    encoders = [make_text_encoder(TEXTS[0], projected=False)]
    if family == "sdxl":
        encoders.append(make_text_encoder(TEXTS[1], projected=True))
    return unet.eval(), vae.eval(), [encoder.eval() for encoder in encoders]


def settings(family: str) -> dict[str, Any]:
    """What a narrow file's header says of the networks in it."""
    config = UNETS[family]
    return SETTINGS | {"unet": {key: config[key] for key in ("attention_head_dim", "norm_num_groups")}}


def write_base(folder: Path, family: str) -> Path:
    """A complete single-file base."""
    unet, vae, encoders = networks(family)
    path = folder / f"{family}.safetensors"
    save_single_file(path, unet, vae, encoders, settings(family))
    return path


def read_base(folder: Path, family: str) -> Checkpoint:
    """The same, opened."""
    return read_checkpoint(write_base(folder, family))


def copy_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """A network's state, detached from it."""
    return {key: tensor.detach().clone() for key, tensor in module.state_dict().items()}


def same(module: torch.nn.Module, state: dict[str, Tensor]) -> bool:
    """Whether a network's state is `state`, bit for bit."""
    now = module.state_dict()
    return now.keys() == state.keys() and all(torch.equal(now[key], tensor) for key, tensor in state.items())


def conditioning(rows: int, family: str, positive: list[bool] | None = None) -> Conditioning:
    """Random text for each row."""
    torch.manual_seed(3)
    vector = torch.randn(rows, VECTOR) if family == "sdxl" else None
    marks = None if positive is None else torch.tensor(positive)
    return Conditioning(torch.randn(rows, 5, CONTEXT), vector, positive=marks)
