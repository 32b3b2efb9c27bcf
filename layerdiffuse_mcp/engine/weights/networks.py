"""The classes of the networks that checkpoints fill: diffusers' UNet with a whole vector, our text encoder."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from layerdiffuse_mcp.engine.text.clip import TextConfig, TextEncoder


class VectorUNet(UNet2DConditionModel):
    """diffusers' UNet, whose vector conditioning (B, A) is given whole as `added_cond_kwargs["vector"]`.

    diffusers joins pooled text and size embedding inside the network; the reference hands over the finished vector, and
    so do we. Weights, names and configuration are unchanged.
    """

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights. diffusers goes through the whole network to know."""
        return self.conv_in.weight.dtype

    def get_aug_embed(
        self, emb: Tensor, encoder_hidden_states: Tensor, added_cond_kwargs: dict[str, Any]
    ) -> Tensor | None:
        """The vector's share of the time embedding (B, E), or None for a network without vector."""
        if self.config["addition_embed_type"] is None:
            return None
        return self.add_embedding(added_cond_kwargs["vector"].to(emb.dtype))


def make_text_encoder(config: Mapping[str, Any], projected: bool) -> TextEncoder:
    """A text encoder with weights to be filled in; of `config` what `TextConfig` knows counts."""
    settings = {field.name: config[field.name] for field in fields(TextConfig) if field.name in config}
    return TextEncoder(TextConfig(**settings), projected)
