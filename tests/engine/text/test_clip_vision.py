"""CLIP's encoder of pictures computes what transformers' does, of what transformers' processor makes of a picture."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from layerdiffuse_mcp.engine.text.clip_vision import VisionConfig, VisionEncoder, pixels
from layerdiffuse_mcp.errors import CheckpointError

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "projection_dim": 24,
}


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_it_computes_what_transformers_does(activation: str):
    torch.manual_seed(0)
    theirs = CLIPVisionModelWithProjection(CLIPVisionConfig(**SHAPE, hidden_act=activation)).eval()
    ours = VisionEncoder(VisionConfig(**SHAPE, hidden_act=activation)).eval()
    state = {name.removeprefix("vision_model."): tensor for name, tensor in theirs.state_dict().items()}
    ours.load_state_dict(state)
    seen = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        states, embedding = ours(seen)
        expected = theirs(seen, output_hidden_states=True)
    torch.testing.assert_close(embedding, expected.image_embeds)
    for mine, other in zip(states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("size", [(56, 56), (90, 130), (131, 77)])
def test_a_picture_becomes_what_transformers_makes_of_it(size: tuple[int, int]):
    picture = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    processor = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=56)
    expected = processor(Image.fromarray(picture), return_tensors="pt").pixel_values
    assert (pixels(picture, 56) - expected).abs().max() < 4 / 255 / 0.26


def test_an_activation_that_is_not_known_is_refused():
    with pytest.raises(CheckpointError, match="The image encoder's activation is 'relu'"):
        VisionEncoder(VisionConfig(**SHAPE, hidden_act="relu"))
