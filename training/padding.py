"""Spreads a cut-out's colour into its transparent part, on batches, as the autoencoder should see it.

Outside a subject the colour of an RGBA file is arbitrary (mostly black), and a hard edge there would cost the latent
much of its room. The colour is filled from ever coarser averages of the visible colour: smooth, and equal to the
picture where alpha is 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def spread_colour(rgb: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """rgb (B, 3, H, W) and alpha (B, 1, H, W), both 0..1 -> padded rgb (B, 3, H, W), 0..1; H and W powers of two."""
    levels = [(rgb * alpha, alpha)]
    while levels[-1][1].shape[-1] > 1:
        colour, weight = levels[-1]
        levels.append((F.avg_pool2d(colour, 2), F.avg_pool2d(weight, 2)))
    colour, weight = levels.pop()
    filled = colour / weight.clamp(min=1e-6)
    for colour, weight in reversed(levels):
        size = weight.shape[-2:]
        if min(size) > 2:
            filled = F.interpolate(filled, size=size, mode="bilinear", align_corners=False)
        else:
            filled = F.interpolate(filled, size=size, mode="nearest")
        filled = colour + (1 - weight) * filled
    return filled.clamp(0, 1)
