"""Batches for the autoencoder and the decoder: cut-outs moved, softened, and laid on backgrounds."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from training.backgrounds import GREY
from training.padding import spread_colour


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """uint8 (B, H, W, C) -> float (B, C, H, W) in 0..1."""
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2).float() / 255


def composite(rgba: torch.Tensor, background: torch.Tensor | float) -> torch.Tensor:
    return rgba[:, :3] * rgba[:, 3:] + background * (1 - rgba[:, 3:])


def flattened(rgba: torch.Tensor) -> torch.Tensor:
    """What the VAE sees of a cut-out: the picture on mid-grey."""
    return composite(rgba, GREY)


def move(
    rgba: torch.Tensor,
    generator: torch.Generator,
    *,
    scale: tuple[float, float] = (0.75, 1.05),
    shift: float = 0.1,
    turn: float = 0.1,
    flip: bool = True,
) -> torch.Tensor:
    """Random small scale, shift and turn of each cut-out (colour travels premultiplied), and mirror images half of the
    time.
    """
    count = rgba.shape[0]
    uniform = lambda low, high: torch.rand(count, generator=generator) * (high - low) + low  # noqa: E731
    factor, angle = 1 / uniform(*scale), uniform(-turn, turn)
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0) if flip else torch.ones(count)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = factor * torch.cos(angle) * mirror, -factor * torch.sin(angle)
    theta[:, 1, 0], theta[:, 1, 1] = factor * torch.sin(angle) * mirror, factor * torch.cos(angle)
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-shift, shift), uniform(-shift, shift)
    grid = F.affine_grid(theta, list(rgba.shape), align_corners=False)
    premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
    moved = F.grid_sample(premultiplied, grid, mode="bilinear", align_corners=False)
    return repad(moved[:, :3] / moved[:, 3:].clamp(min=1e-4), moved[:, 3:])


def repad(rgb: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Cut-outs with their colour spread into the transparent part, true where alpha is above 8 of 255."""
    rgb = rgb.clamp(0, 1)
    return torch.cat([torch.where(alpha > 8 / 255, rgb, spread_colour(rgb, alpha)), alpha], 1)


def smooth_noise(count: int, size: int, cells: int, generator: torch.Generator) -> torch.Tensor:
    coarse = torch.rand(count, 1, cells, cells, generator=generator)
    return F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True).clamp(0, 1)


def blur(image: torch.Tensor, radius: int) -> torch.Tensor:
    for _ in range(2):
        image = F.avg_pool2d(F.pad(image, [radius] * 4, mode="replicate"), 2 * radius + 1, 1)
    return image


def soften(rgba: torch.Tensor, generator: torch.Generator, share: float = 0.4) -> torch.Tensor:
    """Gives a share of the cut-outs soft alpha: a glow, a shadow, glass, smoke, or a soft edge."""
    out = rgba.clone()
    count, _, size, _ = rgba.shape
    for index in torch.nonzero(torch.rand(count, generator=generator) < share).flatten().tolist():
        one = rgba[index : index + 1]
        rgb, alpha = one[:, :3], one[:, 3:]
        kind = int(torch.randint(5, (1,), generator=generator))
        radius = int(torch.randint(2, 9, (1,), generator=generator))
        strength = 0.4 + 0.6 * float(torch.rand(1, generator=generator))
        colour = torch.rand(1, 3, 1, 1, generator=generator)
        if kind in (0, 1):  # a glow around it, or a shadow below it, in its own colour or black
            halo = blur(alpha, radius)
            if kind == 1:
                halo, colour = torch.roll(halo, (radius, radius // 2), (2, 3)), colour * 0.15
            halo = halo * strength
            total = alpha + halo * (1 - alpha)
            rgb = (rgb * alpha + colour * halo * (1 - alpha)) / total.clamp(min=1e-4)
            alpha = total
        elif kind == 2:  # glass: evenly or unevenly see-through
            alpha = alpha * (1 - strength * smooth_noise(1, size, 3, generator))
        elif kind == 3:  # smoke: a soft cloud of its own
            cloud = (smooth_noise(1, size, 4, generator) * 0.6 + smooth_noise(1, size, 9, generator) * 0.4 - 0.3).clamp(
                0, 1
            ) * 1.8
            alpha = (cloud * blur(alpha, 12)).clamp(0, 1)
            rgb = colour.expand_as(rgb) * (0.7 + 0.3 * cloud)
        else:  # an edge out of focus
            alpha = blur(alpha, radius // 2 + 1)
        out[index : index + 1] = repad(rgb, alpha)
    return out


def crop(images: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """One random square of this size from all of the batch."""
    if size == images.shape[-1]:
        return images
    y, x = torch.randint(images.shape[-1] - size + 1, (2,), generator=generator).tolist()
    return images[..., y : y + size, x : x + size]
