"""A Qwen-Image-2.1 base of few and random weights: the real classes, saved by diffusers as a folder."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from tokenizers import pre_tokenizers
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from layerdiffuse_mcp.engine.models.qwen_processor import StillProcessor

CHANNELS = 64
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def pipeline() -> QwenImage21Pipeline:
    """With the processor that reads no videos, and pictures from 32x32 pixels on."""
    torch.manual_seed(0)
    vae = AutoencoderKLQwenImage21(base_dim=8, decoder_base_dim=8, dim_mult=[1] * 5, num_res_blocks=1)
    transformer = QwenImage21Transformer2DModel(
        num_layers=2, attention_head_dim=8, num_attention_heads=2, context_in_dim=16, axes_dims_rope=(4, 2, 2)
    )
    for weight in transformer.parameters():
        weight.data *= 3  # or a picture beside the words would hardly show
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=letters, merges=[], extra_special_tokens=SPECIAL)
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    rope = {"mrope_section": [2, 1, 1], "rope_theta": 1e6, "rope_type": "default"}
    text = {"num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    vision = {"depth": 2, "num_heads": 2, "out_hidden_size": 16, "deepstack_visual_indexes": [0]}
    width = {"hidden_size": 16, "intermediate_size": 16}
    config = Qwen3VLConfig(
        text_config={**width, **text, "vocab_size": 300, "rope_parameters": rope},
        vision_config={**width, **vision, "num_position_embeddings": 16, "patch_size": 16},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    pictures = Qwen2VLImageProcessorPil(
        patch_size=16, size={"shortest_edge": 32 * 32, "longest_edge": 2048 * 2048}, image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )  # fmt: skip
    return QwenImage21Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02, max_shift=0.9),
        vae=vae.eval(),
        text_encoder=Qwen3VLForConditionalGeneration(config).eval(),
        processor=StillProcessor(pictures, tokenizer),
        transformer=transformer.eval(),
    )


def write(folder: Path) -> Path:
    """The base as a folder."""
    pipeline().save_pretrained(folder)
    return folder
