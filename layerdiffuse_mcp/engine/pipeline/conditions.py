"""The picture to edit and its mask, as a drawing takes them, and what lies outside the mask put back.

As for conditions (`layers/conditions.py`), a picture of N pixels takes at most 16 N bytes beside itself and 600 MB.
"""

from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from layerdiffuse_mcp.api.fields import MAX_SIZE
from layerdiffuse_mcp.engine.layers.conditions import each_pixel
from layerdiffuse_mcp.images.alpha import Bytes, Floats, padded_rgb, to_bytes
from layerdiffuse_mcp.images.resize import resized

MOST_PADDED = MAX_SIZE**2
"""Pixels of a picture up to which its colour is continued below its transparent parts at its own size."""
ALPHA_SCALE = 255 * 255


def fitted(picture: Bytes, width: int, height: int, resize_mode: str) -> Bytes:
    """An RGBA picture resized with its alpha, without a halo of what lies below its transparent parts.

    Colour is first continued there. In a picture of more than `MOST_PADDED` pixels it is weighted by alpha instead,
    which takes a tenth of the memory; what the result has below transparency is black then.
    """
    if picture.shape[:2] == (height, width):
        return picture
    if picture.shape[0] * picture.shape[1] > MOST_PADDED:
        weighted = resized(
            each_pixel(_weighted, picture, np.empty(picture.shape, np.uint16)), height, width, resize_mode
        )
        alpha = weighted[..., 3:] / ALPHA_SCALE
        colour = weighted[..., :3] / np.maximum(weighted[..., 3:], 1)
        return to_bytes(np.concatenate([colour, alpha], axis=-1))
    colour = resized(padded_rgb(picture), height, width, resize_mode)
    alpha = resized(picture[..., 3:].astype(np.float32).repeat(3, axis=2) / 255, height, width, resize_mode)
    return to_bytes(np.concatenate([colour, alpha[..., :1]], axis=-1))


def mask_latent(mask: Bytes, downscale: int) -> Tensor:
    """A mask (H, W), uint8, 255 where to draw anew, at the latent's size: (1, 1, h, w) of zeros and ones."""
    height, width = mask.shape
    small = cv2.resize(mask, (width // downscale, height // downscale), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(small.astype(np.float32) / 255).round()[None, None]


def fitted_mask(mask: Bytes, width: int, height: int, resize_mode: str) -> Bytes:
    """A mask picture (H, W, 4) as brightness (H, W), uint8, at the size that is drawn; transparent counts as black."""
    grey = each_pixel(_brightness, mask, np.empty((*mask.shape[:2], 1), np.float32))
    return to_bytes(resized(grey, height, width, resize_mode))[..., 0]


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
