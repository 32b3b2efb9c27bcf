"""IP-Adapters: a picture as a prompt, which the cross attention reads beside the text.

    referred = Referred.of(model, settings, picture)            # once; the encoder is onloaded with the text's
    with referring(model, networks, referred, mask): ...        # a hook above all others, on the plain base, too

To what a layer's attention gives, an attention to the picture's tokens is added, times the strength and the mask; rows
of the unconditional pass see the tokens of no picture. The picture stands on mid-grey, as what layer methods draw does.

Source: Ye et al., "IP-Adapter: text compatible image prompt adapter" (2023); diffusers' pipelines.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
from diffusers.image_processor import IPAdapterMaskProcessor
from torch import Tensor
from torch.nn import functional as F

from layerdiffuse_mcp.api.control import ReferenceSettings
from layerdiffuse_mcp.engine.layers.conditions import each_pixel
from layerdiffuse_mcp.engine.models.attention_hooks import Attend, AttentionCall
from layerdiffuse_mcp.engine.models.networks import Networks
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.sampling.tiles import crop
from layerdiffuse_mcp.engine.text.clip_vision import pixels
from layerdiffuse_mcp.engine.weights.ip_adapter import IPAdapter
from layerdiffuse_mcp.errors import LayerFileError
from layerdiffuse_mcp.images.alpha import Bytes, on_level

GREY = 128


@dataclass(frozen=True, eq=False)
class Referred:
    """A reference's settings, and what the encoder says of no picture and of the picture: (2, P) or (2, places, C)."""

    asked: ReferenceSettings
    seen: Tensor

    @classmethod
    def of(cls, model: StableDiffusion, asked: ReferenceSettings, picture: Bytes) -> "Referred":
        """What the model's image encoder says to the settings' adapter of a picture (H, W, 4), uint8, any size."""
        flat = each_pixel(lambda some: on_level(some, GREY), picture, np.empty((*picture.shape[:2], 3), np.uint8))
        plus, encoder = model.reads_states(asked.model), model.image_encoder()
        image = pixels(flat, encoder.side).to(encoder.visual_projection.weight)
        with torch.inference_mode():
            if plus:
                states, _ = encoder(torch.cat([torch.zeros_like(image), image]))
                return cls(asked, states[-2])
            embedding = encoder(image)[1]
            return cls(asked, torch.cat([torch.zeros_like(embedding), embedding]))


@contextmanager
def referring(
    model: StableDiffusion, networks: Networks, referred: Referred | None, mask: Bytes | None
) -> Generator[Networks]:
    """Networks that read a reference. mask: (H, W), uint8, 255 where it acts, at the size that is drawn; or None."""
    if referred is None:
        yield networks
        return
    unet = networks.unet
    adapter = model.adapter(referred.asked.model)
    tokens = adapter(referred.seen.to(adapter.weight))
    where = None if mask is None else torch.from_numpy((mask > 127).astype(np.float32))[None]
    names = [name.removesuffix(".processor") for name in unet.unet.attn_processors if name.endswith("attn2.processor")]
    if len(names) != len(adapter.to_k_ip):
        raise LayerFileError(
            f"The IP-Adapter {referred.asked.model} is for another base: it reads {len(adapter.to_k_ip)} layers, "
            f"and this one has {len(names)}. Use one of the base's own family."
        )
    hooks = {
        name: partial(_also_read, adapter, place, tokens, referred.asked.strength, where)
        for place, name in enumerate(names)
    }
    with unet.hooked_above(hooks):
        yield networks


def _also_read(
    adapter: IPAdapter,
    place: int,
    tokens: Tensor,
    strength: float,
    mask: Tensor | None,
    call: AttentionCall,
    attend: Attend,
) -> Tensor:
    """A layer's output with what it reads of the tokens, (2, T, C), which rows of each pass share."""
    read = attend(call)
    heads, positive = call.attention.heads, call.conditioning.positive
    rows = torch.ones(len(read), dtype=torch.long) if positive is None else positive.long()
    query, key, value = (
        states.unflatten(-1, (heads, -1)).transpose(1, 2)
        for states in (
            call.attention.to_q(call.states),
            adapter.to_k_ip[place](tokens)[rows.to(tokens.device)],
            adapter.to_v_ip[place](tokens)[rows.to(tokens.device)],
        )
    )
    seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    if mask is not None:
        part = mask if call.conditioning.box is None else crop(mask, call.conditioning.box)
        seen = seen * IPAdapterMaskProcessor.downsample(part, len(seen), *seen.shape[1:]).to(seen)
    out = cast(torch.nn.Linear, call.attention.to_out[0])  # type: ignore[index]
    return read + F.linear(strength * seen, out.weight)
