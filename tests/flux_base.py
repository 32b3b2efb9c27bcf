"""A FLUX.1-dev base of few and random weights and its layer files: the real classes, saved by diffusers as a folder."""

import io
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from layerdiffuse_mcp.engine.transparency.networks import OffsetEncoder, TransparentDecoder
from layerdiffuse_mcp.families.flux import CODEC, TRANSPARENT

CHANNELS, RANK = 16, 2
LAYERED = ("attn.to_q", "attn.to_out.0", "ff_context.net.2", "proj_mlp", "norm.linear")
"""Ends of the modules that the layer file changes."""


def pipeline() -> FluxPipeline:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        latent_channels=CHANNELS, block_out_channels=(4,) * 4, norm_num_groups=2, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    transformer = FluxTransformer2DModel(
        in_channels=4 * CHANNELS, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=1,
        joint_attention_dim=16, pooled_projection_dim=8, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    clip = CLIPTextConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, vocab_size=len(words),
        projection_dim=8, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
    )  # fmt: skip
    t5 = T5Config(
        d_model=16, d_ff=16, d_kv=8, num_heads=2, num_layers=2, vocab_size=300, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )  # fmt: skip
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("\u2581", -2.0),
        *((chr(code), -3.0) for code in range(97, 123)),
    ]
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=CLIPTextModel(clip).eval(),
        tokenizer=CLIPTokenizer(
            vocab={word: place for place, word in enumerate(words)}, merges=[], model_max_length=77
        ),
        text_encoder_2=T5EncoderModel(t5).eval(),
        tokenizer_2=T5Tokenizer(vocab=pieces, model_max_length=512),
        transformer=transformer.eval(),
    )


def layer_tensors() -> dict[str, Tensor]:
    """A layer file as it is published: low-rank changes under the transformer's names."""
    torch.manual_seed(1)
    changed = {
        name: module
        for name, module in pipeline().transformer.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(LAYERED)
    }
    tensors: dict[str, Tensor] = {}
    for name, module in changed.items():
        tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(RANK, module.in_features)
        tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(module.out_features, RANK) * 0.3
    return tensors


def codec() -> tuple[TransparentDecoder, OffsetEncoder]:
    """The transparent decoder and the offset encoder, narrow."""
    torch.manual_seed(2)
    decoder, encoder = (
        TransparentDecoder((8, 8, 8, 8, 16, 16, 16), CHANNELS),
        OffsetEncoder((4, 4, 8, 8), 1.0, CHANNELS),
    )
    for zeroed in (decoder.latent_conv_in, encoder.blocks[-1]):
        for weight in zeroed.parameters():
            nn.init.normal_(weight, std=0.2)
    return decoder.eval(), encoder.eval()


def pickled() -> bytes:
    """The codec as it is published: one pickle of both networks, beside the autoencoder that they were trained with.

    Its networks have alpha last, and the encoder's answer is 300 times as large as the file says.
    """
    decoder, encoder = codec()
    alpha_last = [1, 2, 3, 0]
    theirs = {f"decoder.{name}": weight for name, weight in decoder.state_dict().items()}
    theirs |= {f"encoder.{name}": weight for name, weight in encoder.state_dict().items()}
    for name in ("decoder.conv_out.weight", "decoder.conv_out.bias"):
        theirs[name] = theirs[name][alpha_last]
    theirs["encoder.blocks.0.weight"] = theirs["encoder.blocks.0.weight"][:, alpha_last]
    for name in ("encoder.blocks.16.weight", "encoder.blocks.16.bias"):
        theirs[name] = theirs[name] / 300
    theirs["sd_vae.decoder.conv_in.weight"] = torch.zeros(1)
    buffer = io.BytesIO()
    torch.save(theirs, buffer)
    return buffer.getvalue()


def write_layers(folder: Path) -> None:
    """The layer files, converted."""
    folder.mkdir(parents=True, exist_ok=True)
    decoder, encoder = codec()
    save_file(layer_tensors(), folder / TRANSPARENT.file)
    save_file(decoder.state_dict(), folder / CODEC.decoder)
    save_file(encoder.state_dict(), folder / CODEC.encoder)


def write(folder: Path, name: str = "flux-small") -> Path:
    """The base as a folder below `folder`, and its layer files."""
    pipeline().save_pretrained(folder / name)
    write_layers(folder)
    return folder / name


class Harm:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)
