"""What a `.safetensors` file is, told from its keys and shapes alone.

    kind = identify(header.shapes, header.metadata)
    kind.name, kind.title        # "sd3", "an SD3 model"
    text_layers(path, spec)      # 12: of a base's text encoder

One table, `KINDS`: the first row whose marks are all there wins. The rows that can be a base stand on their family's
card; every other row exists so that an error can say what the user has given instead.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from layerdiffuse_mcp.families.registry import ADAPTERS
from layerdiffuse_mcp.families.registry import KINDS as FAMILY_KINDS
from layerdiffuse_mcp.families.spec import FamilySpec, Kind, Shapes
from layerdiffuse_mcp.families.stable_diffusion import VECTOR
from layerdiffuse_mcp.hub.headers import read_header

TEXT_LAYER = re.compile(r"(?:layers|resblocks)\.(\d+)\.")
"""In the keys of CLIP's text encoder, as transformers or OpenCLIP names them."""


def _offset_encoder(shapes: Shapes) -> bool:
    return all(f"blocks.{i}.weight" in shapes for i in range(0, 17, 2)) and len(shapes) == 18


KINDS: tuple[Kind, ...] = (
    # files of LayerDiffuse
    Kind("layer_sharing", "an SD 1.5 layer file (attention sharing)", ("hookers.layers.",)),
    Kind("layer_offsets", "an SDXL layer file (offsets)", any_of=("::lora::", "::diff::")),
    Kind("transparent_decoder", "a transparent VAE decoder", ("latent_conv_in.weight", "mid_block.")),
    Kind("transparent_encoder", "a transparent VAE encoder", ("blocks.16.weight",), test=_offset_encoder),
    # adapters
    Kind("lora", "a LoRA", any_of=("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")),
    Kind("lora", "a LoRA", any_of=(".lora_A.", ".lora_down.", "_lora.down.", ".lora.down.", ".lora_linear_")),
    Kind("lycoris", "a LyCORIS adapter", any_of=(".hada_w1_a", ".lokr_w1", "oft_blocks", ".dora_scale")),
    *ADAPTERS,
    Kind("controlnet", "a ControlNet", any_of=("control_model.", "controlnet_cond_embedding.", "controlnet_blocks.")),
    Kind("ip_adapter", "an IP-Adapter", any_of=("ip_adapter.", "image_proj.")),
    Kind("motion", "an AnimateDiff motion module", ("motion_modules.",)),
    Kind("embedding", "a textual inversion embedding", any_of=("emb_params", "string_to_param")),
    # other families of base models
    Kind("sd3", "an SD3 model", ("joint_blocks.0.",)),
    Kind("sd3", "an SD3 model", ("transformer_blocks.0.norm1_context.", "pos_embed.proj.")),
    Kind("cascade", "a Stable Cascade model", any_of=("clip_txt_pooled_mapper.", "effnet_mapper.")),
    Kind("auraflow", "an AuraFlow model", ("double_layers.0.",)),
    Kind("pixart", "a PixArt model", ("adaln_single.linear.",)),
    Kind("qwen_image", "a Qwen-Image model", ("transformer_blocks.0.img_mod.", "txt_norm.")),
    Kind("wan", "a Wan video model", ("text_embedding.0.", "blocks.0.cross_attn.norm_q.")),
    Kind("lumina", "a Lumina or Z-Image model", ("cap_embedder.", "noise_refiner.0.")),
    Kind("hunyuan", "a HunyuanDiT model", ("mlp_t5.0.", "blocks.0.attn1.")),
    Kind("svd", "a Stable Video Diffusion model", ("time_stack.",)),
    *FAMILY_KINDS,
    Kind("unclip", "an unCLIP base", (VECTOR,)),
    # parts of a base
    Kind(
        "unet", "a UNet alone, in diffusers names", ("time_embedding.linear_1.", "down_blocks.0.resnets.0.", "conv_in.")
    ),
    Kind("vae", "a VAE alone", ("first_stage_model.decoder.",)),
    Kind("vae", "a VAE alone", ("encoder.down.0.block.0.", "decoder.up.0.block.0.")),
    Kind(
        "vae", "a VAE alone, in diffusers names", ("encoder.down_blocks.0.resnets.0.", "decoder.up_blocks.0.resnets.0.")
    ),
    Kind("text_encoder", "a text encoder alone", any_of=("text_model.encoder.layers.0.", "transformer.resblocks.0.")),
    Kind("text_encoder", "a T5 text encoder alone", ("encoder.block.0.layer.0.SelfAttention.",)),
    Kind("language_model", "a language model", ("model.layers.0.self_attn.",)),
    Kind("upscaler", "an upscaler", any_of=("RRDB_trunk.", ".RDB1.conv1.", ".rdb1.conv1.")),
)
UNKNOWN = Kind("unknown", "a file of a kind that is not known here")


def identify(shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str] | None = None) -> Kind:
    """The kind of file that has tensors of these names and shapes; `UNKNOWN` when no row fits.

    `metadata` is the header's; kohya's trainer writes `ss_network_module` there, which settles a LoRA of unusual keys.
    """
    for kind in KINDS:
        if _fits(kind, shapes):
            return kind
    if metadata and "ss_network_module" in metadata:
        return next(kind for kind in KINDS if kind.name == "lora")
    return UNKNOWN


def text_layers(path: Path, spec: FamilySpec) -> int | None:
    """Layers of a base's text encoder, of the one with the fewest where there are several; None if it does not say.

    path: a single file or a diffusers folder. Raises as `read_header` does.
    """
    names = spec.names("text")
    if os.path.isdir(path):
        counts = [_stated(path / name / "config.json", "num_hidden_layers") for name in names]
    else:
        keys = read_header(path).rows
        counts = [_counted_layers(keys, spec.component(name).prefix) for name in names]
    return min((count for count in counts if count), default=None)


def text_widths(path: Path, spec: FamilySpec) -> tuple[int, ...] | None:
    """Numbers of a token's vector in each of a base's text encoders, in their order; None if it does not say.

    path: a single file or a diffusers folder. Raises as `read_header` does.
    """
    names = spec.names("text")
    if os.path.isdir(path):
        widths = [_stated(path / name / "config.json", "hidden_size") for name in names]
    else:
        shapes = read_header(path).shapes
        tables = [(spec.component(name).prefix, "token_embedding.weight") for name in names]
        widths = [
            next((shape[-1] for key, shape in shapes.items() if key.startswith(start) and key.endswith(end)), 0)
            for start, end in tables
        ]
    return tuple(widths) if all(widths) else None


def _stated(config: Path, name: str) -> int:
    with suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
        return int(json.loads(config.read_text(encoding="utf-8")).get(name) or 0)
    return 0


def _counted_layers(keys: Mapping[str, object], prefix: str) -> int:
    found = (TEXT_LAYER.search(key, len(prefix)) for key in keys if key.startswith(prefix))
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _fits(kind: Kind, shapes: Shapes) -> bool:
    def held(mark: str) -> bool:
        return mark in shapes or any(mark in key for key in shapes)

    return (
        all(held(mark) for mark in kind.marks)
        and (not kind.any_of or any(held(mark) for mark in kind.any_of))
        and (kind.test is None or kind.test(shapes))
    )
