"""Prompt embeddings: what the text encoders make of prompts, as the reference makes it.

    context = encode_sd15(text_encoder, ["an apple", "a pear"])
    context, pooled = encode_sdxl(text_encoder, text_encoder_2, ["an apple"])
    vector = sdxl_vector(pooled, height=1024, width=1024)

The functions are pure and keep nothing: whoever owns the text encoders may keep what comes back. A prompt is encoded
alone, once for all its repetitions, so its embeddings never depend on the other prompts of a batch. The encoders are
used on the device and in the dtype that they have.

`emphasis` is one of `choices.EMPHASIS`: when the embeddings have been multiplied by the prompt's weights, "Original"
restores the mean of each chunk and "No norm" does not. `inversions` are vectors of textual inversions by their names,
(V, C) for the encoder whose tokens they take the place of.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from layerdiffuse_mcp.engine.text.clip import TextEncoder
from layerdiffuse_mcp.engine.text.inversions import Taught
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.text.chunks import CHUNK_LENGTH, Chunk, TokenizedPrompt, tokenize_prompt
from layerdiffuse_mcp.text.tokenizer import clip_tokenizer

SDXL_CLIP_SKIP = 2
"""SDXL was trained on the last hidden state but one."""
SIZE_FREQUENCIES = 128
"""Cosines, and as many sines, for each of the six numbers of SDXL's size conditioning."""

_AT_ONCE = 16  # chunks in one pass, so that a very long prompt does not fill the memory
_SDXL_PAD = 0  # the second encoder of SDXL was trained with token 0 ("!") after the end


class SdxlEmbeddings(NamedTuple):
    """context: (B, 77 k, C_l + C_g), the two encoders side by side; pooled: (B, P), from the second one."""

    context: Tensor
    pooled: Tensor


class _Encoded(NamedTuple):
    """context: (77 k, C); pooled: (P,), the normed last state at the first chunk's end token, projected."""

    context: Tensor
    pooled: Tensor


def encode_sd15(
    text_encoder: TextEncoder,
    prompts: Sequence[str],
    clip_skip: int = 1,
    emphasis: str = "Original",
    inversions: Taught | None = None,
) -> Tensor:
    """The context of SD1.5's network: (B, 77 k, C), k chunks of the longest prompt, in the encoder's dtype.

    clip_skip: 1 for the last hidden state, 2 for the one before, ...; the final layer norm follows in any case.
    Raises InvalidRequest if the encoder has fewer layers.
    """
    encoder = _Encoder(text_encoder, clip_skip, final_norm=True, emphasis=emphasis, inversions=inversions)
    return _each_once(prompts, encoder)[0]


def encode_sdxl(
    text_encoder_l: TextEncoder,
    text_encoder_g: TextEncoder,
    prompts: Sequence[str],
    *,
    negative: bool = False,
    clip_skip: int = SDXL_CLIP_SKIP,
    emphasis: str = "Original",
    inversions: tuple[Taught, Taught] | None = None,
) -> SdxlEmbeddings:
    """The context of SDXL's network and the pooled vector (see `sdxl_vector`), in the encoders' dtype.

    negative: these are negative prompts, of which an empty one becomes zeros. clip_skip: below 2 counts as 2.
    text_encoder_g carries a `text_projection`. Raises InvalidRequest if an encoder has too few layers.
    """
    skip = max(clip_skip, SDXL_CLIP_SKIP)
    taught_l, taught_g = inversions or ({}, {})
    first = _Encoder(text_encoder_l, skip, final_norm=False, emphasis=emphasis, inversions=taught_l)
    second = _Encoder(text_encoder_g, skip, final_norm=False, emphasis=emphasis, inversions=taught_g, pad=_SDXL_PAD)
    context_l, _ = _each_once(prompts, first)
    context_g, pooled = _each_once(prompts, second)
    context = torch.cat([context_l, context_g], dim=-1)
    if negative:
        empty = torch.tensor([prompt == "" for prompt in prompts], device=context.device)
        context = context.masked_fill(empty[:, None, None], 0.0)
        pooled = pooled.masked_fill(empty[:, None].to(pooled.device), 0.0)
    return SdxlEmbeddings(context, pooled)


def sdxl_vector(pooled: Tensor, height: int, width: int) -> Tensor:
    """SDXL's vector conditioning: pooled (B, P) and the size -> (B, P + 1536), in pooled's dtype and device.

    The six numbers (height, width, 0, 0, height, width), that is original size, crop and target size in pixels, each as
    128 cosines and 128 sines of falling frequency (Vaswani et al. 2017, period 10,000).
    """
    numbers = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)
    powers = torch.arange(SIZE_FREQUENCIES, dtype=torch.float32) / SIZE_FREQUENCIES
    angles = numbers[:, None] * torch.pow(10_000.0, -powers)
    size = torch.cat([angles.cos(), angles.sin()], dim=-1).flatten().to(pooled)
    return torch.cat([pooled, size.expand(pooled.shape[0], -1)], dim=-1)


class _Encoder:
    """One text encoder with all that decides what it makes of a prompt."""

    def __init__(
        self,
        model: TextEncoder,
        clip_skip: int,
        *,
        final_norm: bool,
        emphasis: str,
        inversions: Taught | None = None,
        pad: int | None = None,
    ) -> None:
        self.model = model
        layers = len(model.encoder.layers)
        if not 1 <= clip_skip <= layers:
            raise InvalidRequest(f"clip_skip is {clip_skip}; this text encoder has {layers} layers, so 1 to {layers}.")
        self.clip_skip = clip_skip
        self.final_norm = final_norm
        self.table = model.embeddings.token_embedding.weight
        self.tokenizer = clip_tokenizer(self.table.shape[0])
        self.emphasis = emphasis
        self.pad = pad
        self.inversions = inversions or {}

    @torch.no_grad()
    def __call__(self, prompt: str) -> _Encoded:
        tokenized = tokenize_prompt(prompt, self.tokenizer, {name: len(own) for name, own in self.inversions.items()})
        tokens = torch.tensor([chunk.tokens for chunk in tokenized.chunks])
        first_end = int((tokens[0] == self.tokenizer.end).nonzero()[0])
        if self.pad is not None:
            ended = (tokens == self.tokenizer.end).cumsum(dim=1)
            after = ended.roll(1, dims=1) > 0
            after[:, 0] = False
            tokens = tokens.masked_fill(after, self.pad)

        norm = self.model.final_layer_norm
        states: list[Tensor] = []
        pooled: Tensor | None = None
        parts = tokens.to(self.table.device).split(_AT_ONCE)
        for number, part in enumerate(parts):
            layers = self.model(part, self._vectors(tokenized.chunks[number * _AT_ONCE :][:_AT_ONCE]))
            if pooled is None:
                pooled = self.model.text_projection(norm(layers[-1])[0, first_end])
            states.append(layers[-self.clip_skip])
        assert pooled is not None
        context = torch.cat(states)
        if self.final_norm:
            context = norm(context)
        return _Encoded(_emphasized(context, tokenized, self.emphasis).flatten(0, 1), pooled)

    def _vectors(self, chunks: Sequence[Chunk]) -> dict[tuple[int, int], Tensor]:
        """Vectors by row and position."""
        return {
            (row, position): self.inversions[name][number]
            for row, chunk in enumerate(chunks)
            for position, (name, number) in chunk.vectors.items()
        }


def _emphasized(context: Tensor, tokenized: TokenizedPrompt, emphasis: str) -> Tensor:
    """Multiply the embeddings (k, 77, C) by the prompt's weights, chunk by chunk, computed in float32."""
    weights = torch.tensor([chunk.multipliers for chunk in tokenized.chunks], dtype=torch.float32)
    if bool((weights == 1.0).all()):
        return context
    before = context.float()
    after = before * weights[..., None].to(context.device)
    if emphasis == "Original":
        after = after * (before.mean(dim=(1, 2), keepdim=True) / after.mean(dim=(1, 2), keepdim=True))
    return after.to(context.dtype)


def _each_once(prompts: Sequence[str], encoder: _Encoder) -> tuple[Tensor, Tensor]:
    """Encode each distinct prompt once: contexts (B, 77 k, C), filled up with empty chunks, and pooled (B, P)."""
    encoded = {prompt: encoder(prompt) for prompt in dict.fromkeys(prompts)}
    contexts = {prompt: result.context for prompt, result in encoded.items()}
    longest = max(context.shape[0] for context in contexts.values())
    if any(context.shape[0] < longest for context in contexts.values()):
        empty = encoder("").context
        for prompt, context in contexts.items():
            missing = (longest - context.shape[0]) // CHUNK_LENGTH
            contexts[prompt] = torch.cat([context, empty.repeat(missing, 1)])
    return (
        torch.stack([contexts[prompt] for prompt in prompts]),
        torch.stack([encoded[prompt].pooled for prompt in prompts]),
    )
