"""Given pictures as the networks take them.

The reference puts an RGBA picture on mid-grey, resizes it, and encodes it with a random draw from the
autoencoder's posterior, taken from a global generator. Here the draw is a pure function of the result's
seed: a stream of the chosen noise source seeded with seed + 2^41, one draw a picture in the order of the
method's inputs. So a picture does not depend on what was drawn before it.

A picture of N pixels takes at most 16 N bytes here beside itself and 600 MB: what is done to each pixel alone is done
to some at a time, and what needs the whole picture at once is left to those that are no larger than what is drawn.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from layerdiffuse_mcp.choices import NoiseSource
from layerdiffuse_mcp.engine.cancellation import check
from layerdiffuse_mcp.engine.model import Model
from layerdiffuse_mcp.engine.sampling.noise import SOURCES
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.alpha import Bytes, Floats, on_grey, padded_rgb, to_bytes
from layerdiffuse_mcp.images.resize import CROP, resized
from layerdiffuse_mcp.requests import MAX_SIZE

CONDITION_STREAM = 1 << 41
LATENT_FACTOR = 8
MOST_PADDED = MAX_SIZE**2
"""Pixels of a picture up to which its colour is continued below its transparent parts at its own size."""
MOST_SCALED = 4 * MAX_SIZE**2
"""Pixels that a picture may have once it is scaled and not yet cropped."""
SOME_PIXELS = 1 << 20
ALPHA_SCALE = 255 * 255


@torch.inference_mode()
def encode_condition(
    model: Model,
    pictures: list[list[Bytes]],
    seeds: list[int],
    width: int,
    height: int,
    resize_mode: str,
    source: NoiseSource,
) -> Tensor:
    """The latents that are joined behind the noisy one: (B, 4 * inputs, h, w), float32, scaled.

    Args:
        pictures: for each result its pictures (H, W, 4), uint8, in the order of the method's inputs.
        seeds: of the results.
        width, height: what is drawn, multiples of 8.
    """
    vae: Any = model.vae
    shape = (4, height // LATENT_FACTOR, width // LATENT_FACTOR)
    moments: dict[int, tuple[Tensor, Tensor]] = {}
    rows: list[Tensor] = []
    for own, seed in zip(pictures, seeds, strict=True):
        stream = SOURCES[source](seed + CONDITION_STREAM)
        latents: list[Tensor] = []
        for picture in own:
            if id(picture) not in moments:
                flat = to_nchw(_on_grey(picture, width, height, resize_mode)) * 2 - 1
                posterior = vae.encode(flat.to(device=vae.device, dtype=vae.dtype)).latent_dist
                moments[id(picture)] = posterior.mean.float(), posterior.std.float()
            mean, std = moments[id(picture)]
            latents.append(mean + std * stream.draw(shape).to(mean))
        rows.append(torch.cat(latents, dim=1) * model.checkpoint.scaling_factor)
    return torch.cat(rows)


def control_picture(picture: Bytes, width: int, height: int, resize_mode: str) -> Tensor:
    """The picture that the SD1.5 control encoder sees: (1, 3, H, W), 0..1, on mid-grey."""
    return to_nchw(_on_grey(picture, width, height, resize_mode)).clamp(0, 1)


def _on_grey(picture: Bytes, width: int, height: int, resize_mode: str) -> Floats:
    """A picture on mid-grey, (height, width, 3), 0..1 but for what Lanczos adds."""
    check_fits(picture, width, height, resize_mode)
    grey = _each_pixel(lambda some: on_grey(with_alpha(some)), picture, np.empty((*picture.shape[:2], 3), np.float32))
    return resized(grey, height, width, resize_mode)


def fitted(picture: Bytes, width: int, height: int, resize_mode: str) -> Bytes:
    """An RGBA picture resized with its alpha, without a halo of what lies below its transparent parts.

    Colour is first continued there. In a picture of more than `MOST_PADDED` pixels it is weighted by alpha instead,
    which takes a tenth of the memory; what the result has below transparency is black then.
    """
    if picture.shape[:2] == (height, width):
        return picture
    check_fits(picture, width, height, resize_mode)
    if picture.shape[0] * picture.shape[1] > MOST_PADDED:
        weighted = resized(
            _each_pixel(_weighted, picture, np.empty(picture.shape, np.uint16)), height, width, resize_mode
        )
        alpha = weighted[..., 3:] / ALPHA_SCALE
        colour = weighted[..., :3] / np.maximum(weighted[..., 3:], 1)
        return to_bytes(np.concatenate([colour, alpha], axis=-1))
    colour = resized(padded_rgb(picture), height, width, resize_mode)
    alpha = resized(picture[..., 3:].astype(np.float32).repeat(3, axis=2) / 255, height, width, resize_mode)
    return to_bytes(np.concatenate([colour, alpha[..., :1]], axis=-1))


def mask_latent(mask: Bytes) -> Tensor:
    """A mask (H, W), uint8, 255 where to draw anew, at the latent's size: (1, 1, H/8, W/8) of zeros and ones."""
    height, width = mask.shape
    small = cv2.resize(mask, (width // LATENT_FACTOR, height // LATENT_FACTOR), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(small.astype(np.float32) / 255).round()[None, None]


def fitted_mask(mask: Bytes, width: int, height: int, resize_mode: str) -> Bytes:
    """A mask picture (H, W, 4) as brightness (H, W), uint8, at the size that is drawn; transparent counts as black."""
    check_fits(mask, width, height, resize_mode)
    grey = _each_pixel(_brightness, mask, np.empty((*mask.shape[:2], 1), np.float32))
    return to_bytes(resized(grey, height, width, resize_mode))[..., 0]


def check_fits(picture: Bytes, width: int, height: int, resize_mode: str) -> None:
    """Refuse a picture so long that it would be many times what is drawn before it is cropped: InvalidRequest."""
    old_height, old_width = picture.shape[:2]
    factor = max(height / old_height, width / old_width)
    if resize_mode == CROP and factor**2 * old_height * old_width > MOST_SCALED:
        raise InvalidRequest(
            f"A picture of {old_width}x{old_height} cannot be fitted to {width}x{height} by {CROP}, which would make "
            f"it {old_width * factor:.0f}x{old_height * factor:.0f} first. Crop it, or choose another resize_mode."
        )


def _each_pixel(work: Callable[[Bytes], Any], picture: Bytes, into: Any) -> Any:
    """`work`, which sees (N, 1, C), of all pixels of a picture, some at a time: `into`, filled."""
    pixels, made = picture.reshape(-1, 1, picture.shape[2]), into.reshape(-1, 1, into.shape[2])
    for begin in range(0, len(pixels), SOME_PIXELS):
        check()
        some = slice(begin, begin + SOME_PIXELS)
        made[some] = work(pixels[some])
    return into


def _weighted(rgba: Bytes) -> Any:
    """Colour times alpha, and alpha, both from 0 to `ALPHA_SCALE`."""
    alpha = rgba[..., 3:].astype(np.uint16)
    return np.concatenate([rgba[..., :3] * alpha, alpha * np.uint16(255)], axis=-1)


def _brightness(rgba: Bytes) -> Floats:
    return rgba[..., :3].astype(np.float32).mean(axis=-1, keepdims=True) * (rgba[..., 3:] / np.float32(255)) / 255


def original_outside(mask: Bytes, original: Bytes, drawn: Bytes) -> Bytes:
    """The drawn picture inside the mask, the original outside, mixed premultiplied where the mask is grey."""
    share = mask[..., None].astype(np.float32) / 255
    new, old = (picture.astype(np.float32) / 255 for picture in (drawn, original))
    alpha = new[..., 3:] * share + old[..., 3:] * (1 - share)
    colour = new[..., :3] * new[..., 3:] * share + old[..., :3] * old[..., 3:] * (1 - share)
    straight = np.where(alpha > 0, colour / np.maximum(alpha, 1e-6), new[..., :3] * share + old[..., :3] * (1 - share))
    mixed = to_bytes(np.concatenate([straight, alpha], axis=-1))
    return np.where(mask[..., None] == 0, original, np.where(mask[..., None] == 255, drawn, mixed))


def with_alpha(picture: Bytes) -> Bytes:
    """(H, W, 3) becomes (H, W, 4), opaque; (H, W, 4) stays."""
    if picture.shape[-1] == 4:
        return picture
    return np.concatenate([picture, np.full_like(picture[..., :1], 255)], axis=-1)


def to_nchw(picture: Any) -> Tensor:
    """(H, W, C) float to (1, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)[None]))
