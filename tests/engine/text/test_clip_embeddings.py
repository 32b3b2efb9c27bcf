"""Prompt embeddings: what a batch, a long prompt, an empty one, a dtype and a small vocabulary change and do not."""

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor

from layerdiffuse_mcp.engine.text.clip import TextConfig, TextEncoder
from layerdiffuse_mcp.engine.text.clip_embeddings import encode_sd15, encode_sdxl, sdxl_vector
from layerdiffuse_mcp.errors import InvalidRequest

WIDTH = 16
LONG = ", ".join(f"(word{n}:1.2)" for n in range(40))


def narrow_clip(*, projected: bool = False, rows: int = 49_408, seed: int = 0) -> TextEncoder:
    config = TextConfig(
        vocab_size=rows, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        projection_dim=WIDTH,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = TextEncoder(config, projected)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def clip_l() -> TextEncoder:
    return narrow_clip()


@pytest.fixture(scope="module")
def clip_g() -> TextEncoder:
    return narrow_clip(projected=True, seed=1)


def tokens_seen(encoder: TextEncoder) -> list[Tensor]:
    """A list that gets the tokens (B, 77) of each pass."""
    seen: list[Tensor] = []
    table = encoder.embeddings.token_embedding
    table.register_forward_hook(lambda _module, given, _out: seen.append(given[0]))
    return seen


def test_a_prompt_is_the_same_alone_and_among_others(clip_l: TextEncoder, clip_g: TextEncoder) -> None:
    alone = encode_sd15(clip_l, ["a (red:1.4) cup"])
    among = encode_sd15(clip_l, ["dog", "a (red:1.4) cup", LONG])
    assert among.shape == (3, 77 * 2, WIDTH)
    assert torch.equal(among[1, :77], alone[0])
    assert torch.equal(among[1, 77:], encode_sd15(clip_l, [""])[0])
    assert torch.equal(
        encode_sdxl(clip_l, clip_g, ["dog", "cat"]).pooled[1], encode_sdxl(clip_l, clip_g, ["cat"]).pooled[0]
    )


def test_a_repeated_prompt_is_encoded_once() -> None:
    model = narrow_clip()
    seen = tokens_seen(model)
    context = encode_sd15(model, ["cat", "dog", "cat"])
    assert len(seen) == 2
    assert torch.equal(context[0], context[2])


def test_the_chunks_of_a_prompt_are_encoded_together_and_a_very_long_one_in_bounded_passes() -> None:
    model = narrow_clip()
    seen = tokens_seen(model)
    assert encode_sd15(model, [LONG]).shape == (1, 77 * 2, WIDTH)
    assert [len(tokens) for tokens in seen] == [2]
    context = encode_sd15(model, ["word " * 10_000])
    assert context.shape == (1, 77 * 134, WIDTH)
    assert max(len(tokens) for tokens in seen) <= 16
    assert bool(context.isfinite().all())


def test_emphasis_restores_the_mean_of_each_chunk_unless_told_not_to(clip_l: TextEncoder) -> None:
    plain = encode_sd15(clip_l, ["red cup"])
    original = encode_sd15(clip_l, ["(red:1.5) cup"])
    no_norm = encode_sd15(clip_l, ["(red:1.5) cup"], emphasis="No norm")
    torch.testing.assert_close(original.mean(), plain.mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(no_norm[0, 1], plain[0, 1] * 1.5)
    torch.testing.assert_close(no_norm[0, 2:], plain[0, 2:])


def test_clip_skip_beyond_the_layers_is_refused(clip_l: TextEncoder) -> None:
    assert encode_sd15(clip_l, ["cat"], clip_skip=3).shape == (1, 77, WIDTH)
    for clip_skip in (0, 4):
        with pytest.raises(InvalidRequest, match="1 to 3"):
            encode_sd15(clip_l, ["cat"], clip_skip=clip_skip)


def test_an_empty_negative_prompt_of_sdxl_is_all_zeros_and_no_other_is(
    clip_l: TextEncoder, clip_g: TextEncoder
) -> None:
    context, pooled = encode_sdxl(clip_l, clip_g, ["", " ", "bad"], negative=True)
    assert context.shape == (3, 77, 2 * WIDTH)
    assert pooled.shape == (3, WIDTH)
    assert not context[0].any()
    assert not pooled[0].any()
    assert all(context[n].any() and pooled[n].any() for n in (1, 2))
    positive = encode_sdxl(clip_l, clip_g, [""])
    assert positive.context.any()
    assert positive.pooled.any()


def test_pooled_comes_from_the_first_chunk(clip_l: TextEncoder, clip_g: TextEncoder) -> None:
    one, two, other = (
        encode_sdxl(clip_l, clip_g, [prompt]).pooled for prompt in ("a cat", "a cat BREAK a dog", "a dog BREAK a cat")
    )
    torch.testing.assert_close(one, two)
    assert not torch.allclose(one, other, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_embeddings_have_the_encoders_dtype(dtype: torch.dtype) -> None:
    low_l, low_g = narrow_clip().to(dtype), narrow_clip(projected=True).to(dtype)
    exact = encode_sd15(narrow_clip(), [LONG])
    low = encode_sd15(low_l, [LONG])
    assert low.dtype == dtype
    torch.testing.assert_close(low.float(), exact, rtol=0.1, atol=0.1)
    context, pooled = encode_sdxl(low_l, low_g, [LONG])
    assert context.dtype == pooled.dtype == sdxl_vector(pooled, 512, 512).dtype == dtype


def test_the_tokens_fit_each_encoders_vocabulary_and_the_second_one_is_padded_with_zero() -> None:
    first, second = narrow_clip(rows=700), narrow_clip(projected=True, rows=1000)
    seen_first, seen_second = tokens_seen(first), tokens_seen(second)
    encode_sdxl(first, second, ["a"])
    assert seen_first[0][0].tolist() == [698, 320, *[699] * 75]
    assert seen_second[0][0].tolist() == [998, 320, 999, *[0] * 74]
    assert encode_sd15(first, ["an apple, 漢字 (🎈:1.2)"]).isfinite().all()


def test_embeddings_keep_no_gradient(clip_l: TextEncoder, clip_g: TextEncoder) -> None:
    context, pooled = encode_sdxl(clip_l, clip_g, ["cat"])
    assert not context.requires_grad
    assert not pooled.requires_grad
    context.zero_()  # and are ordinary tensors


def test_the_size_vector_is_that_of_diffusers() -> None:
    pooled = torch.randn(2, 1280)
    vector = sdxl_vector(pooled, height=1152, width=896)
    numbers = torch.tensor([1152, 896, 0, 0, 1152, 896], dtype=torch.float32)
    sizes: Tensor = get_timestep_embedding(numbers, 256, flip_sin_to_cos=True, downscale_freq_shift=0).flatten()
    assert vector.shape == (2, 1280 + 6 * 256)
    torch.testing.assert_close(vector, torch.cat([pooled, sizes.expand(2, -1)], dim=1), rtol=0, atol=2e-4)
