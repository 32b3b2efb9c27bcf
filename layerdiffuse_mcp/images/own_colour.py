"""The subject's own colour of a picture whose alpha is known and whose background is not.

    rgba = with_own_colour(picture, alpha)

A pixel is C = aF + (1 - a)B. With alpha a known, F is the likeliest colour where subject and background have, near the
pixel, each a mean and a variance of their own, measured where one of them is seen alone. Source: Chuang et al., "A
Bayesian approach to digital matting" (CVPR 2001), equation 9, channel by channel.
"""

from collections.abc import Callable, Iterator

import cv2
import numpy as np

from layerdiffuse_mcp.images.alpha import Bytes, Floats, Tile, tiles, to_bytes, to_float

REACHES = (90, 24, 6)
"""Sides in pixels of the squares in which colours are gathered, each where the next smaller one holds too few."""
FEW = 0.02
"""Share of a square that has to be seen alone for it to count as much as the square around it."""
SURE = 16
"""Power of alpha by which a pixel counts as the subject's: soft parts have the background in them."""
LEAST_VARIANCE = (0.8 / 255) ** 2
"""Of colours that are rounded to 8 bits, and a little noisy."""
SIDE = 320
"""Of the tiles that are held as float32 at once."""

Report = Callable[[float], None]
Spread = tuple[Floats, Floats]
"""Mean and variance of colours, (H, W, 3) or (3,)."""


def ignore(_: float) -> None:
    """A report that nobody reads."""


def with_own_colour(picture: Bytes, alpha: Floats, report: Report = ignore) -> Bytes:
    """A picture with this alpha, and its colour without the background's share; opaque pixels stay as they are.

    `picture` is (H, W, 3) or (H, W, 4), uint8, `alpha` (H, W), 0 to 1; the result is (H, W, 4). Takes 4 bytes a pixel.
    """
    rgba = np.empty((*alpha.shape, 4), np.uint8)
    rgba[..., 3] = to_bytes(alpha)
    subject, ground = _overall(picture, alpha)
    cuts = list(_cuts(*alpha.shape))
    for number, (tile, around, inside) in enumerate(cuts, 1):
        colour, cover = to_float(picture[around][..., :3]), alpha[around].astype(np.float32)
        near = _near(colour, cover**SURE, subject), _near(colour, (1 - cover) ** SURE, ground)
        likeliest = _likeliest(colour, cover[..., None], *near)
        rgba[(*tile, slice(3))] = to_bytes(likeliest[inside])
        report(number / len(cuts))
    rgba[rgba[..., 3] == 0] = 0
    return rgba


def _cuts(height: int, width: int) -> Iterator[tuple[Tile, Tile, Tile]]:
    """Tiles of a picture, each with what its pixels look at around it, and where it lies in that."""
    margin = REACHES[0] // 2
    for top in range(0, height, SIDE):
        for left in range(0, width, SIDE):
            above, before = max(0, top - margin), max(0, left - margin)
            down, right = min(height, top + SIDE), min(width, left + SIDE)
            yield (
                (slice(top, down), slice(left, right)),
                (slice(above, down + margin), slice(before, right + margin)),
                (slice(top - above, down - above), slice(left - before, right - before)),
            )


def _overall(picture: Bytes, alpha: Floats) -> tuple[Spread, Spread]:
    """The colours of the whole subject, and of the whole background."""
    sums = np.zeros((2, 7))
    for tile in tiles(*alpha.shape):
        colour = to_float(picture[tile][..., :3]).reshape(-1, 3)
        moments = np.concatenate([np.ones_like(colour[:, :1]), colour, colour * colour], axis=1)
        cover = alpha[tile].reshape(-1).astype(np.float32)
        sums += np.stack([cover**SURE, (1 - cover) ** SURE]) @ moments
    first, second = (row[1:] / max(row[0], 1e-6) for row in sums)
    return _spread(first[:3], first[3:]), _spread(second[:3], second[3:])


def _near(colour: Floats, weight: Floats, overall: Spread) -> Spread:
    """The colours around each pixel by how much they count, from a wide square to a narrow one."""
    mean, variance = overall
    weight = weight[..., None]
    for reach in REACHES:
        size = (reach, reach)
        seen = cv2.blur(weight, size)[..., None] + FEW
        square = (cv2.blur(colour * colour * weight, size) + FEW * (variance + mean * mean)) / seen
        mean, variance = _spread((cv2.blur(colour * weight, size) + FEW * mean) / seen, square)
    return mean, variance


def _spread(mean: Floats, square: Floats) -> Spread:
    """Mean and variance by the means of colours and of their squares."""
    return mean.astype(np.float32), np.maximum(square - mean * mean, 0).astype(np.float32)


def _likeliest(colour: Floats, cover: Floats, subject: Spread, ground: Spread) -> Floats:
    """The subject's colour: its mean, and of what that leaves unexplained the part that is more likely its own."""
    (mean, variance), (below, varies) = subject, ground
    rest = 1 - cover
    unexplained = colour - cover * mean - rest * below
    own, foreign = variance + LEAST_VARIANCE, varies + LEAST_VARIANCE
    return mean + cover * own / (cover * cover * own + rest * rest * foreign) * unexplained
