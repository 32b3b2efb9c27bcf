"""Latent transparency, the way in: from RGBA to a latent that carries its alpha.

    encoder = load_offset_encoder(path)
    latent = transparent_latent(vae, encoder, rgba)             # unscaled, as the autoencoder has it

The method is that of arXiv:2402.17113; numbers follow the authors' implementation.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerdiffuse_mcp.api.detail import Box, Tiling
from layerdiffuse_mcp.engine.sampling.tiles import OnTile, Tiles, crop
from layerdiffuse_mcp.engine.transparency.networks import LATENT_DOWNSCALE, OffsetEncoder
from layerdiffuse_mcp.errors import ImageError
from layerdiffuse_mcp.images.alpha import Bytes, on_level, padded_rgb, to_float

VAE_BACKGROUND = 127  # the grey under the picture that the VAE encodes
ENCODERS = 2  # that a picture goes through: the offset encoder and the VAE's


@torch.inference_mode()
def encode_offset(
    encoder: OffsetEncoder, rgba: Bytes, tiling: Tiling | None = None, on_tile: OnTile | None = None
) -> Tensor:
    """The latent offset (1, C, H/8, W/8), float32, that hides the alpha of `rgba` (H, W, 4), uint8, straight.

    The encoder sees alpha and the colour continued below the transparent parts, 0 to 1, a tile at a time.

    Raises:
        ImageError: the sides are no multiples of 8.
    """
    height, width = rgba.shape[:2]
    if height % LATENT_DOWNSCALE or width % LATENT_DOWNSCALE:
        raise ImageError(f"A picture of {width}x{height} cannot be encoded: sides are multiples of {LATENT_DOWNSCALE}.")
    argb = _to_nchw(np.concatenate([to_float(rgba[..., 3:]), padded_rgb(rgba)], axis=-1))
    weight = next(encoder.parameters())

    def part(box: Box) -> Tensor:
        made = encoder(crop(argb, box).to(weight)).float()
        (on_tile or _nothing)()
        return made

    return Tiles.of((width, height), tiling).blend(part, LATENT_DOWNSCALE)


@torch.inference_mode()
def transparent_latent(
    vae: Any, encoder: OffsetEncoder, rgba: Bytes, on_network: OnTile | None = None, tiling: Tiling | None = None
) -> Tensor:
    """A latent (1, C, H/8, W/8), float32, unscaled, that `decode` turns back into `rgba`.

    It is mean + std * offset: the offset stands where the VAE's random draw would, so nothing is random here. The VAE
    (a diffusers AutoencoderKL) sees the picture flattened on mid-grey, in whole levels of 255.

    Args:
        rgba: (H, W, 4), uint8, straight alpha; H and W multiples of 8.
        on_network: called after each of the `ENCODERS` networks, and of tiles after each; may raise to stop.
        tiling: how the picture is cut; not at all where that is None.

    Raises:
        ImageError: the sides are no multiples of 8.
    """
    on_network = on_network or _nothing
    offset = encode_offset(encoder, rgba, tiling, on_network)
    flat = _to_nchw(on_level(rgba, VAE_BACKGROUND))

    def part(box: Box) -> Tensor:
        pixels = torch.from_numpy(to_float(crop(flat, box).numpy())) * 2 - 1
        posterior = vae.encode(pixels.to(next(vae.parameters()))).latent_dist
        on_network()
        return torch.cat([posterior.mean.float(), posterior.std.float()], dim=1)

    tiles = Tiles.of((rgba.shape[1], rgba.shape[0]), tiling)
    mean, std = tiles.blend(part, LATENT_DOWNSCALE).chunk(2, dim=1)
    return mean + std * offset.to(mean)


def _nothing() -> None:
    return None


def _to_nchw(picture: Any) -> Tensor:
    """(H, W, C) to (1, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)[None]))
