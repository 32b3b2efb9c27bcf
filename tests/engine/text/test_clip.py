"""The text encoder gives what transformers' CLIP gives, from the same weights."""

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from layerdiffuse_mcp.engine.weights.checkpoint import parameter_key
from layerdiffuse_mcp.engine.weights.networks import make_text_encoder
from layerdiffuse_mcp.errors import CheckpointError

SHAPE = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "projection_dim": 24,
    "bos_token_id": 98,
    "eos_token_id": 99,
}


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_every_layer_equals_transformers(activation: str, projected: bool) -> None:
    torch.manual_seed(0)
    config = CLIPTextConfig(**SHAPE, hidden_act=activation)
    theirs = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    ours = make_text_encoder(config.to_dict(), projected).eval()
    ours.load_state_dict({parameter_key(key): value for key, value in theirs.state_dict().items() if "_ids" not in key})

    tokens = torch.randint(0, 98, (2, 77))
    tokens[:, 40] = 99  # the end, from whose state transformers takes the pooled vector
    with torch.no_grad():
        expected = theirs(input_ids=tokens, output_hidden_states=True)
        states = ours(tokens)
        last = ours.final_layer_norm(states[-1])
        pooled = ours.text_projection(last[:, 40])
    assert len(states) == len(expected.hidden_states) == 4
    for state, other in zip(states, expected.hidden_states, strict=True):
        torch.testing.assert_close(state, other)
    torch.testing.assert_close(last, expected.last_hidden_state)
    torch.testing.assert_close(pooled, expected.text_embeds if projected else expected.pooler_output)


def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(CheckpointError, match="'relu'; quick_gelu and gelu are known"):
        make_text_encoder({"hidden_act": "relu"}, projected=False)
