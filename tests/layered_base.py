"""A Qwen-Image-Layered base of few and random weights: the real classes, saved by diffusers as a folder."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageLayeredPipeline,
    QwenImageTransformer2DModel,
)
from tokenizers import pre_tokenizers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

CHANNELS = 16


def pipeline() -> QwenImageLayeredPipeline:
    """Without the processor, which only captions."""
    torch.manual_seed(0)
    vae = AutoencoderKLQwenImage(
        base_dim=2, z_dim=CHANNELS, dim_mult=[1] * 4, num_res_blocks=0, temperal_downsample=[False] * 3,
        input_channels=4,
    )  # fmt: skip
    transformer = QwenImageTransformer2DModel(
        in_channels=4 * CHANNELS, out_channels=CHANNELS, num_layers=1, attention_head_dim=8, num_attention_heads=1,
        joint_attention_dim=16, axes_dims_rope=(4, 2, 2), use_additional_t_cond=True, use_layer3d_rope=True,
    )  # fmt: skip
    width = {"hidden_size": 16, "intermediate_size": 16}
    rope = {"mrope_section": [1, 1, 2], "rope_theta": 1e6, "rope_type": "default"}
    config = Qwen2_5_VLConfig(
        text_config=width
        | {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 300}
        | {"rope_parameters": rope, "bos_token_id": 256, "eos_token_id": 256},
        vision_config=width | {"depth": 1, "num_heads": 2, "out_hidden_size": 16, "fullatt_block_indexes": [0]},
    )
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    return QwenImageLayeredPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config).eval(),
        tokenizer=Qwen2Tokenizer(vocab=letters, merges=[]),
        processor=None,
        transformer=transformer.eval(),
    )


def write(folder: Path) -> Path:
    """The base as a folder."""
    pipeline().save_pretrained(folder)
    return folder
