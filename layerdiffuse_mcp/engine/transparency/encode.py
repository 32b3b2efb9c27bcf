"""Latent transparency, the way in: from RGBA to a latent that carries its alpha.

    encoder = load_offset_encoder(path)
    latent = transparent_latent(vae, encoder, rgba)             # unscaled, as the autoencoder has it

The method is that of arXiv:2402.17113; numbers follow the authors' implementation.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerdiffuse_mcp.engine.transparency.networks import LATENT_DOWNSCALE, OffsetEncoder
from layerdiffuse_mcp.errors import ImageError
from layerdiffuse_mcp.images.alpha import Bytes, Floats, on_level, padded_rgb, to_float

VAE_BACKGROUND = 127  # the grey under the picture that the VAE encodes
ENCODERS = 2  # that a picture goes through: the offset encoder and the VAE's


@torch.inference_mode()
def encode_offset(encoder: OffsetEncoder, rgba: Bytes) -> Tensor:
    """The latent offset (1, 4, H/8, W/8), float32, that hides the alpha of `rgba` (H, W, 4), uint8, straight.

    The encoder sees alpha and the colour continued below the transparent parts, 0 to 1.

    Raises:
        ImageError: the sides are no multiples of 8.
    """
    height, width = rgba.shape[:2]
    if height % LATENT_DOWNSCALE or width % LATENT_DOWNSCALE:
        raise ImageError(f"A picture of {width}x{height} cannot be encoded: sides are multiples of {LATENT_DOWNSCALE}.")
    argb = np.concatenate([to_float(rgba[..., 3:]), padded_rgb(rgba)], axis=-1)
    weight = next(encoder.parameters())
    return encoder(_to_nchw(argb).to(weight)).float()


@torch.inference_mode()
def transparent_latent(
    vae: Any, encoder: OffsetEncoder, rgba: Bytes, on_network: Callable[[], None] | None = None
) -> Tensor:
    """A latent (1, 4, H/8, W/8), float32, unscaled, that `decode` turns back into `rgba`.

    It is mean + std * offset: the offset stands where the VAE's random draw would, so nothing is random here. The VAE
    (a diffusers AutoencoderKL) sees the picture flattened on mid-grey, in whole levels of 255.

    Args:
        rgba: (H, W, 4), uint8, straight alpha; H and W multiples of 8.
        on_network: called after each of the `ENCODERS` networks; may raise to stop.

    Raises:
        ImageError: the sides are no multiples of 8.
    """
    on_network = on_network or _nothing
    offset = encode_offset(encoder, rgba)
    on_network()
    flat = _to_nchw(to_float(on_level(rgba, VAE_BACKGROUND))) * 2 - 1
    posterior = vae.encode(flat.to(device=vae.device, dtype=vae.dtype)).latent_dist
    mean, std = posterior.mean.float(), posterior.std.float()
    on_network()
    return mean + std * offset.to(mean)


def _nothing() -> None:
    return None


def _to_nchw(picture: Floats) -> Tensor:
    """(H, W, C) to (1, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)[None]))
