"""CLIP's encoder of pictures: what an IP-Adapter is told of a picture.

    encoder = VisionEncoder(VisionConfig(**config))
    states, embedding = encoder(pixels(picture, config.image_size))

The network of Radford et al. 2021 (https://arxiv.org/abs/2103.00020), with the names, settings and results of
transformers' `CLIPVisionModelWithProjection`; see `clip.py` for why it is our own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from layerdiffuse_mcp.engine.text.clip import Layers, check_activation, table
from layerdiffuse_mcp.images.alpha import Bytes, to_float
from layerdiffuse_mcp.images.fitting import middle

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that CLIP was trained on, as its preprocessor takes them off."""


@dataclass(frozen=True)
class VisionConfig:
    """An encoder's shape, in the words of its `config.json`; the defaults are transformers'."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    projection_dim: int = 512
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5


class VisionEncoder(nn.Module):
    """The encoder. Raises `CheckpointError` for an activation that is not known."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        check_activation(config.hidden_act, "image encoder")
        self.side = config.image_size
        width = config.hidden_size
        self.embeddings = _Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(width, config.layer_norm_eps)  # as transformers spells it
        self.encoder = Layers(config, causal=False)
        self.post_layernorm = nn.LayerNorm(width, config.layer_norm_eps)
        self.visual_projection = nn.Linear(width, config.projection_dim, bias=False)

    def forward(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """pixels (B, 3, side, side), as of `pixels` -> 1 + layers states (B, places, C), and the embedding (B, P)."""
        states = [self.pre_layrnorm(self.embeddings(pixels))]
        for layer in self.encoder.layers:
            states.append(layer(states[-1]))
        return states, self.visual_projection(self.post_layernorm(states[-1][:, 0]))


class _Embeddings(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = table((config.image_size // patch) ** 2 + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


def pixels(picture: Bytes, side: int) -> Tensor:
    """The middle of a picture (H, W, 3), uint8, as the encoder takes it: (1, 3, side, side)."""
    seen = torch.from_numpy(to_float(middle(picture, side))).permute(2, 0, 1)[None]
    return (seen - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
