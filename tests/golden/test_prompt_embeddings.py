"""Prompt embeddings equal the reference's, on narrow text encoders in both families' arrangements."""

import pytest
import torch

from layerdiffuse_mcp.engine.text.clip import TextConfig, TextEncoder
from layerdiffuse_mcp.engine.text.clip_embeddings import encode_sd15, encode_sdxl

from .conftest import GoldenSet

pytestmark = pytest.mark.golden_file("prompt_embeddings")

WIDTH = 32


def narrow_clip(golden: GoldenSet, name: str, *, activation: str, projection: bool) -> TextEncoder:
    """Three layers of CLIP; the weights' names are `<name>.text_model.<key>`."""
    config = TextConfig(
        hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        projection_dim=WIDTH, hidden_act=activation,
    )  # fmt: skip
    model = TextEncoder(config, projection)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            full = f"{name}.{key}" if key.startswith("text_projection") else f"{name}.text_model.{key}"
            parameter.copy_(golden.weight(full, parameter.shape))
    return model.eval()


@pytest.fixture(scope="module")
def clip_l(golden: GoldenSet) -> TextEncoder:
    return narrow_clip(golden, "clip_l", activation="quick_gelu", projection=False)


@pytest.fixture(scope="module")
def clip_g(golden: GoldenSet) -> TextEncoder:
    return narrow_clip(golden, "clip_g", activation="gelu", projection=True)


def test_embeddings_equal_the_reference(golden: GoldenSet, key: str, clip_l: TextEncoder, clip_g: TextEncoder) -> None:
    engine, emphasis, name, *pooled = key.split("/")
    assert emphasis in ("Original", "No norm")
    prompt = golden.prompts[name]["prompt"]
    if engine.startswith("sd15"):
        ours = encode_sd15(clip_l, [prompt], clip_skip=2 if engine == "sd15_skip2" else 1, emphasis=emphasis)
    else:
        both = encode_sdxl(clip_l, clip_g, [prompt], emphasis=emphasis)
        halves = {"sdxl_l": both.context[..., :WIDTH], "sdxl_g": both.context[..., WIDTH:]}
        ours = both.pooled if pooled else halves[engine]
    golden.check("prompt_embeddings", key, ours)
