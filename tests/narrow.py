"""Narrow bases and layer files of both families, on disk, under the official names and in the official formats.

The weights are random but sane: every capability runs on them in seconds, though nothing is recognisable.
"""

import atexit
import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from layerdiffuse_mcp.engine.layers.attention_sharing import SharingModel
from layerdiffuse_mcp.engine.text.clip import TextConfig, TextEncoder
from layerdiffuse_mcp.engine.text.clip_vision import VisionConfig, VisionEncoder
from layerdiffuse_mcp.engine.transparency.networks import OffsetEncoder, TransparentDecoder
from layerdiffuse_mcp.engine.weights.ldm_export import save_single_file, to_ldm
from layerdiffuse_mcp.engine.weights.ldm_names import unet_key_map
from layerdiffuse_mcp.engine.weights.networks import VectorUNet
from layerdiffuse_mcp.families.registry import FAMILIES, METHODS
from layerdiffuse_mcp.families.spec import LayerMethod

ROWS = 614  # of the token table: the CLIP vocabulary cut to its first 100 merges
TEXT_WIDTH = 32
CONTROL_WIDTH = 32
SETTINGS = {
    "native_size": 64,
    "vae": {"norm_num_groups": 4, "scaling_factor": 0.5},
    "text_encoder": {"num_attention_heads": 4},
    "text_encoder_2": {"num_attention_heads": 4},
}
TEXT = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": ROWS,
    "projection_dim": TEXT_WIDTH,
}
TEXTS: tuple[dict[str, Any], ...] = (TEXT | {"hidden_act": "quick_gelu"}, TEXT | {"hidden_act": "gelu"})
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {
        "block_out_channels": (32, 32, 32, 32),
        "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        "attention_head_dim": 2,
        "cross_attention_dim": TEXT_WIDTH,
    },
    "sdxl": {
        "block_out_channels": (32, 32, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 2),
        "attention_head_dim": (2, 2, 2),
        "cross_attention_dim": 2 * TEXT_WIDTH,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": TEXT_WIDTH + 6 * 256,
    },
}


def networks(family: str) -> tuple[VectorUNet, AutoencoderKL, list[TextEncoder]]:
    """A UNet, a VAE and text encoders with random weights, always the same."""
    torch.manual_seed(0)
    unet = VectorUNet(**UNETS[family])
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=4,
        latent_channels=4,
    )
    encoders = [TextEncoder(TextConfig(**text), projected=number == 1) for number, text in enumerate(TEXTS)]
    return unet.eval(), vae.eval(), [encoder.eval() for encoder in encoders[: 1 if family == "sd15" else 2]]


def settings(family: str) -> dict[str, Any]:
    """What a narrow file's header says of the networks in it."""
    return SETTINGS | {"unet": {"attention_head_dim": UNETS[family]["attention_head_dim"]}}


def write_base(folder: Path, family: str, name: str = "") -> Path:
    """A complete base in a single file, called `name` or else as the family."""
    path = folder / f"{name or family}.safetensors"
    unet, vae, encoders = networks(family)
    save_single_file(path, FAMILIES[family], unet, vae, encoders, settings(family))
    return path


def write_models(folder: Path, families: tuple[str, ...] = ("sd15", "sdxl")) -> None:
    """Write `tiny-<family>.safetensors` and all layer and transparency files of the families into `folder`."""
    for family in families:
        shutil.copytree(_models(family), folder, dirs_exist_ok=True)


@cache
def _models(family: str) -> Path:
    """The family's files, made once in a process; the folder goes with it."""
    made = TemporaryDirectory()
    folder = Path(made.name)
    atexit.register(made.cleanup)
    unet = networks(family)[0]
    write_base(folder, family, f"tiny-{family}")
    for method in METHODS.values():
        if method.family == family:
            save_file(layer_tensors(method, unet), folder / method.file)
    codec = FAMILIES[family].codec
    assert codec is not None
    save_file(OffsetEncoder((4, 4, 8, 8)).state_dict(), folder / codec.encoder)
    save_file(TransparentDecoder((8, 8, 8, 8, 16, 16, 16)).state_dict(), folder / codec.decoder)
    return folder


def layer_tensors(method: LayerMethod, unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """A layer file for `unet` with small random offsets, rank 4."""
    if method.family == "sd15":
        state = SharingModel(unet, method.frames, 4, bool(method.inputs), CONTROL_WIDTH).state_dict()
        return {key: tensor * 0.5 for key, tensor in state.items()}
    shapes = {key: tensor.shape for key, tensor in to_ldm(unet.state_dict(), unet_key_map(unet.config)).items()}
    if method.id == "layer_xl_transparent_attn":
        attention = {k: s for k, s in shapes.items() if ".attn" in k and ".to_" in k and k.endswith("weight")}
        up = {f"diffusion_model.{key}::lora::0": torch.randn(shape[0], 4) * 0.05 for key, shape in attention.items()}
        down = {f"diffusion_model.{key}::lora::1": torch.randn(4, shape[1]) * 0.05 for key, shape in attention.items()}
        return up | down
    tensors: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        if not any(projection in key for projection in (".to_q.", ".to_k.", ".to_v.")):
            size = list(shape)
            if key == "input_blocks.0.0.weight":
                size[1] += 4 * len(method.inputs)
            tensors[f"diffusion_model.{key}::diff::0"] = torch.randn(size) * 0.01
    return tensors


def write_control(path: Path, family: str, seed: int = 0) -> Path:
    """A ControlNet of random weights, in one file if `path` ends so, else in a diffusers folder."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(**UNETS[family])
    control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8, 16))
    for name, weight in control.named_parameters():
        if name.startswith(("controlnet_down", "controlnet_mid", "controlnet_cond_embedding.conv_out")):
            torch.nn.init.normal_(weight, std=0.1)  # they are 0 before training
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        save_file(control.state_dict(), path)
    else:
        control.save_pretrained(path)
    return path


VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "projection_dim": 24,
    "hidden_act": "gelu",
}


def write_vision(folder: Path) -> None:
    """An image encoder of random weights, as transformers writes one."""
    torch.manual_seed(4)
    folder.mkdir(parents=True, exist_ok=True)
    encoder = VisionEncoder(VisionConfig(**VISION))
    for weight in encoder.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    own = {"visual_projection.weight"}
    state = {name if name in own else f"vision_model.{name}": value for name, value in encoder.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    config = {"architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model", **VISION}
    (folder / "config.json").write_text(json.dumps(config))


def write_ip_adapter(path: Path, family: str, *, plus: bool = False, width: int = 24) -> None:
    """An IP-Adapter of random weights in its authors' names: plus, or plain and of an embedding of this width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(5)
    unet, cross, hidden = UNet2DConditionModel(**UNETS[family]), UNETS[family]["cross_attention_dim"], 64
    layers = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    shapes: dict[str, tuple[int, ...]] = {
        f"ip_adapter.{2 * place + 1}.to_{one}_ip.weight": (32, cross) for place in range(len(layers)) for one in "kv"
    }
    if plus:
        shapes |= {
            "image_proj.latents": (1, 6, hidden),
            "image_proj.proj_in.weight": (hidden, VISION["hidden_size"]), "image_proj.proj_in.bias": (hidden,),
            "image_proj.proj_out.weight": (cross, hidden), "image_proj.proj_out.bias": (cross,),
            "image_proj.norm_out.weight": (cross,), "image_proj.norm_out.bias": (cross,),
        }  # fmt: skip
        for layer in ("image_proj.layers.0", "image_proj.layers.1", "image_proj.layers.2", "image_proj.layers.3"):
            shapes |= {f"{layer}.0.norm{n}.{kind}": (hidden,) for n in (1, 2) for kind in ("weight", "bias")}
            shapes |= {f"{layer}.0.to_q.weight": (64, hidden), f"{layer}.0.to_kv.weight": (128, hidden)}
            shapes |= {f"{layer}.0.to_out.weight": (hidden, 64), f"{layer}.1.0.weight": (hidden,)}
            shapes |= {f"{layer}.1.0.bias": (hidden,), f"{layer}.1.1.weight": (4 * hidden, hidden)}
            shapes |= {f"{layer}.1.3.weight": (hidden, 4 * hidden)}
    else:
        shapes |= {
            "image_proj.proj.weight": (4 * cross, width), "image_proj.proj.bias": (4 * cross,),
            "image_proj.norm.weight": (cross,), "image_proj.norm.bias": (cross,),
        }  # fmt: skip
    save_file({name: torch.randn(shape) * 0.2 for name, shape in shapes.items()}, path)


def write_lora(path: Path) -> None:
    """A LoRA in kohya's layout that fits the narrow bases of both families: one attention layer of the middle."""
    torch.manual_seed(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_v"
    save_file({f"{name}.lora_up.weight": torch.randn(32, 4), f"{name}.lora_down.weight": torch.randn(4, 32)}, path)
