"""Alpha: colour below transparency, flattening, compositing, and facts about what a picture holds.

All alpha here is straight (colour is not multiplied by it). Pictures are numpy arrays (H, W, channels), either uint8
or float32 from 0 to 1; nothing is read from or written to disk.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

GREY = 0.5
PYRAMID_STEP = 1.2


def to_float(picture: Bytes) -> Floats:
    """0 to 255 as float32, 0 to 1."""
    return (picture / np.float32(255)).astype(np.float32, copy=False)


def padded_rgb(rgba: Bytes) -> Floats:
    """Colour continued into the transparent parts, (H, W, 3), 0 to 1, of `rgba` (H, W, 4), uint8.

    Visible colour stays; below transparency comes a blur of the nearest visible colour, from coarse to fine over a
    pyramid whose levels shrink by 1.2. Source: the training data preparation of arXiv:2402.17113.
    """
    scaled = to_float(rgba)
    alpha = scaled[..., 3:]
    levels: list[tuple[Floats, Floats]] = [(scaled[..., :3] * alpha, alpha)]
    while min(levels[-1][1].shape[:2]) > 1:
        colour, cover = levels[-1]
        size = (int(cover.shape[1] / PYRAMID_STEP), int(cover.shape[0] / PYRAMID_STEP))
        levels.append((_shrink(colour, size), _shrink(cover, size)))

    colour, cover = levels[-1]
    total = np.maximum(cover.sum(axis=(0, 1), keepdims=True), np.float32(1e-8))
    filled = colour.sum(axis=(0, 1), keepdims=True) / total
    for colour, cover in reversed(levels):
        height, width = cover.shape[:2]
        filled = colour + cv2.resize(filled, (width, height), interpolation=cv2.INTER_LINEAR) * (1 - cover)
    return filled


def _shrink(picture: Floats, size: tuple[int, int]) -> Floats:
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return small.reshape(size[1], size[0], picture.shape[2]).astype(np.float32)
