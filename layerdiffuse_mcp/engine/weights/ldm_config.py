"""From the shapes of an LDM checkpoint's tensors to the configuration of the networks that hold them.

    config = unet_config(shapes, FAMILIES[entry.family])
    config = unet_config(shapes, spec, {"attention_head_dim": [2, 3, 3, 2]})   # a network whose heads the file states

Shapes tell widths, levels, depths, context and vector widths, vocabulary. They do not tell the number of attention
heads, of norm groups or the latent's scale: those are the family's (its card) unless `overrides` say otherwise.
"""

import re
from collections.abc import Mapping
from typing import Any

from layerdiffuse_mcp.errors import CheckpointError
from layerdiffuse_mcp.families.spec import FamilySpec, Shapes

TEXT_HEAD_WIDTH = 64
TIME_ID_WIDTH = 256


def unet_config(shapes: Shapes, spec: FamilySpec, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A `UNet2DConditionModel` configuration for LDM `shapes` (keys without prefix).

    `overrides` are configuration values that win over what is inferred (say `attention_head_dim`, `norm_num_groups`).
    Raises `CheckpointError` when the tensors do not form a UNet of the SD1.5 or SDXL layout.
    """
    try:
        return _unet_config(shapes, spec, overrides or {})
    except (KeyError, IndexError) as reason:
        raise CheckpointError(
            f"The checkpoint's UNet is incomplete or of another layout (missing {reason}); use an SD 1.5 or SDXL base."
        ) from reason


def _unet_config(shapes: Shapes, spec: FamilySpec, overrides: Mapping[str, Any]) -> dict[str, Any]:
    widths: list[int] = []
    layers: list[int] = []
    depths: list[set[int]] = [set()]
    new_level = True
    for index in range(1, _count(shapes, r"input_blocks\.(\d+)\.")):
        if f"input_blocks.{index}.0.op.weight" in shapes:
            depths.append(set())
            new_level = True
            continue
        width = shapes[f"input_blocks.{index}.0.out_layers.3.weight"][0]
        if new_level:
            widths.append(width)
            layers.append(0)
            new_level = False
        layers[-1] += 1
        depths[-1].add(_depth(shapes, f"input_blocks.{index}.1"))
    middle = _depth(shapes, "middle_block.1")
    if any(len(found) > 1 for found in depths) or len(set(layers)) > 1 or middle == 0:
        raise CheckpointError(
            "The checkpoint's UNet has blocks of mixed depth, as pruned bases (SSD-1B, Vega) do, and layer models do "
            "not fit those; use a full SD 1.5 or SDXL base."
        )
    depth = [next(iter(found)) for found in depths]
    attended = [bool(d) for d in depth]
    first = attended.index(True)
    block = f"input_blocks.{1 + first * (layers[0] + 1)}.1"
    config: dict[str, Any] = {
        "sample_size": spec.native_size // spec.latent.downscale,
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": tuple(widths),
        "layers_per_block": layers[0],
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attended),
        "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)),
        # the middle block takes the last level's depth; a last level without attention does not use its own
        "transformer_layers_per_block": (*(max(1, d) for d in depth[:-1]), middle),
        "cross_attention_dim": shapes[f"{block}.transformer_blocks.0.attn2.to_k.weight"][1],
        "use_linear_projection": len(shapes[f"{block}.proj_in.weight"]) == 2,
        "attention_head_dim": (
            spec.heads if spec.head_width is None else tuple(max(1, w // spec.head_width) for w in widths)
        ),
    }
    if depth[-1] not in (0, middle):
        raise CheckpointError(
            "The checkpoint's middle block is of another depth than its deepest level; use another base."
        )
    if "label_emb.0.0.weight" in shapes:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": TIME_ID_WIDTH,
            "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
        }
    return config | dict(overrides)


def vae_config(shapes: Shapes, spec: FamilySpec, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """An `AutoencoderKL` configuration for LDM `shapes` (keys without `first_stage_model.`).

    Raises `CheckpointError` when the tensors do not form a VAE.
    """
    try:
        levels = _count(shapes, r"encoder\.down\.(\d+)\.")
        widths = tuple(shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels))
        latent = shapes["decoder.conv_in.weight"][1]
        config: dict[str, Any] = {
            "in_channels": shapes["encoder.conv_in.weight"][1],
            "out_channels": shapes["decoder.conv_out.weight"][0],
            "block_out_channels": widths,
            "layers_per_block": _count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            "latent_channels": latent,
            "use_quant_conv": "quant_conv.weight" in shapes,
            "use_post_quant_conv": "post_quant_conv.weight" in shapes,
            "sample_size": spec.native_size,
            "scaling_factor": spec.latent.scale,
        }
    except KeyError as reason:
        raise CheckpointError(f"The checkpoint's VAE is incomplete (missing {reason}); use another file.") from reason
    return config | dict(overrides or {})


def text_config(shapes: Shapes, open_clip: bool, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A `TextConfig` of `shapes` in transformers' names without `text_model.` (see `open_clip_origins`).

    OpenCLIP encoders use the exact gelu, OpenAI's the quick one. Raises `CheckpointError` when tensors are missing.
    """
    try:
        vocabulary, width = shapes["embeddings.token_embedding.weight"]
        config: dict[str, Any] = {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
            "num_hidden_layers": _count(shapes, r"encoder\.layers\.(\d+)\."),
            "num_attention_heads": max(1, width // TEXT_HEAD_WIDTH),
            "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0],
            "projection_dim": shapes.get("text_projection.weight", (width,))[0],
            "hidden_act": "gelu" if open_clip else "quick_gelu",
        }
    except KeyError as reason:
        raise CheckpointError(
            f"The checkpoint's text encoder is incomplete (missing {reason}); use another file."
        ) from reason
    return config | dict(overrides or {})


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest number that `pattern` captures at the start of a key."""
    found = [int(match[1]) for key in shapes if (match := re.match(pattern, key))]
    return max(found, default=-1) + 1


def _depth(shapes: Shapes, block: str) -> int:
    return _count(shapes, rf"{re.escape(block)}\.transformer_blocks\.(\d+)\.")
