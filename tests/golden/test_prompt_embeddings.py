"""Prompt embeddings equal the reference's, on narrow text encoders in both families' arrangements."""

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from layerdiffuse_mcp.engine.prompts import encode_sd15, encode_sdxl

from .conftest import GoldenSet

pytestmark = pytest.mark.golden_file("prompt_embeddings")

WIDTH = 32


def narrow_clip(golden: GoldenSet, name: str, *, activation: str, projection: bool) -> torch.nn.Module:
    """Three layers of CLIP; the weights' names are `<name>.text_model.<key>` in every version of transformers."""
    config = CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        projection_dim=WIDTH, hidden_act=activation, eos_token_id=49407,
    )  # fmt: skip
    model = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            bare = key.removeprefix("text_model.")
            full = f"{name}.{bare}" if bare.startswith("text_projection") else f"{name}.text_model.{bare}"
            parameter.copy_(golden.weight(full, parameter.shape))
    return model.eval()


@pytest.fixture(scope="module")
def clip_l(golden: GoldenSet) -> torch.nn.Module:
    return narrow_clip(golden, "clip_l", activation="quick_gelu", projection=False)


@pytest.fixture(scope="module")
def clip_g(golden: GoldenSet) -> torch.nn.Module:
    return narrow_clip(golden, "clip_g", activation="gelu", projection=True)


def test_embeddings_equal_the_reference(
    golden: GoldenSet, key: str, clip_l: torch.nn.Module, clip_g: torch.nn.Module
) -> None:
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
