"""CLIP's text encoder: tokens -> what each of its layers makes of them.

    encoder = TextEncoder(TextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    states = encoder(tokens)                              # the embeddings, then every layer's output
    context = encoder.final_layer_norm(states[-1])

The network of Radford et al. 2021 (https://arxiv.org/abs/2103.00020), with the names, settings and results of
transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`: importing those takes longer than importing torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerdiffuse_mcp.errors import CheckpointError


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": _quick_gelu, "gelu": F.gelu}
"""OpenAI's encoders use the quick approximation, OpenCLIP's the exact function."""


@dataclass(frozen=True)
class TextConfig:
    """A text encoder's shape, in the words of its `config.json`; the defaults are transformers'."""

    vocab_size: int = 49_408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    projection_dim: int = 512
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


class TextEncoder(nn.Module):
    """The encoder; `text_projection` is the identity unless `projected`.

    Raises `CheckpointError` for an activation that is not in `ACTIVATIONS`.
    """

    def __init__(self, config: TextConfig, projected: bool = False) -> None:
        super().__init__()
        if config.hidden_act not in ACTIVATIONS:
            known = " and ".join(ACTIVATIONS)
            raise CheckpointError(f"The text encoder's activation is {config.hidden_act!r}; {known} are known.")
        width = config.hidden_size
        self.embeddings = _Embeddings(config)
        self.encoder = _Layers(config)
        self.final_layer_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.text_projection = nn.Linear(width, config.projection_dim, bias=False) if projected else nn.Identity()

    def forward(self, tokens: Tensor, vectors: Mapping[tuple[int, int], Tensor] | None = None) -> list[Tensor]:
        """tokens (B, T) -> 1 + layers states (B, T, C): the embeddings, then each layer's output, not normed.

        vectors: (C,), in place of the table's, by row and position.
        """
        states = [self.embeddings(tokens, vectors or {})]
        for layer in self.encoder.layers:
            states.append(layer(states[-1]))
        return states


class _Embeddings(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = _table(config.vocab_size, config.hidden_size)
        self.position_embedding = _table(config.max_position_embeddings, config.hidden_size)

    def forward(self, tokens: Tensor, vectors: Mapping[tuple[int, int], Tensor]) -> Tensor:
        embedded = self.token_embedding(tokens)
        for place, vector in vectors.items():
            embedded[place] = vector.to(embedded)
        return embedded + self.position_embedding.weight[: tokens.shape[1]]


def _table(rows: int, width: int) -> nn.Embedding:
    # nn.Embedding draws from a normal distribution, which on the meta device imports the compiler: 1.5 s
    return nn.Embedding.from_pretrained(torch.empty(rows, width).uniform_(-1, 1), freeze=False)


class _Layers(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))


class _Layer(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(config.hidden_size, config.num_attention_heads)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = _Mlp(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in projections)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(seen.transpose(1, 2).flatten(-2))


class _Mlp(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))
