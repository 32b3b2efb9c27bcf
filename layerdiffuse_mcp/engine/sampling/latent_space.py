"""Between the latents of an autoencoder and those that are sampled: scale and shift of the family's `LatentFormat`.

z = to_sampled(vae.encode(pixels), format)
pixels = vae.decode(to_unscaled(z, format))
"""

import torch
from torch import Tensor

from layerdiffuse_mcp.families.spec import LatentFormat


def to_sampled(latents: Tensor, latent: LatentFormat) -> Tensor:
    """An autoencoder's latents (B, C, h, w) in the space that they are sampled in."""
    return (latents - _by_channel(latent.shift, latents)) * _by_channel(latent.scale, latents)


def to_unscaled(latents: Tensor, latent: LatentFormat) -> Tensor:
    """Sampled latents (B, C, h, w) as the autoencoder has them."""
    return latents / _by_channel(latent.scale, latents) + _by_channel(latent.shift, latents)


def _by_channel(value: float | tuple[float, ...], like: Tensor) -> Tensor | float:
    return torch.tensor(value).to(like)[:, None, None] if isinstance(value, tuple) else value
