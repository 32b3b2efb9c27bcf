"""What the emoji lack, made by our own code: a subject of glass, a glowing one, one in another colour, and smoke.

MATERIALS[name](cutouts, generator)      (B, 4, H, W) in 0..1 -> the same
smoke(count, colour, generator)                             (count, 4, 128, 128)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from training import data, mixing

SMOKE = {
    "white": (0.93, 0.93, 0.95),
    "grey": (0.6, 0.6, 0.62),
    "black": (0.12, 0.12, 0.13),
    "red": (0.85, 0.2, 0.2),
    "green": (0.3, 0.7, 0.35),
    "blue": (0.25, 0.45, 0.9),
    "purple": (0.55, 0.3, 0.75),
    "orange": (0.95, 0.55, 0.2),
}

COLOURS = {
    "red": (0.85, 0.13, 0.15),
    "orange": (0.97, 0.52, 0.1),
    "yellow": (0.98, 0.84, 0.2),
    "green": (0.2, 0.64, 0.26),
    "turquoise": (0.15, 0.75, 0.75),
    "blue": (0.17, 0.38, 0.88),
    "purple": (0.48, 0.22, 0.72),
    "pink": (0.98, 0.56, 0.75),
    "brown": (0.46, 0.28, 0.16),
    "black": (0.09, 0.09, 0.1),
    "grey": (0.55, 0.56, 0.58),
    "white": (0.95, 0.95, 0.96),
}


def tinted(rgba: torch.Tensor, generator: torch.Generator, *, colour: tuple[float, float, float]) -> torch.Tensor:
    """In shades of one colour, as light and dark as the subject's own parts are beside its mean, with a little of their
    own colour.
    """
    rgb, alpha = rgba[:, :3], rgba[:, 3:]
    light = rgb.mean(1, keepdim=True)
    middle = (light * alpha).sum((2, 3), keepdim=True) / alpha.sum((2, 3), keepdim=True).clamp(min=1e-4)
    aim = torch.tensor(colour).view(1, 3, 1, 1)
    darker = (light / middle.clamp(min=0.05)).clamp(0, 1) ** 0.7
    lighter = ((light - middle) / (1 - middle).clamp(min=0.05)).clamp(0, 1) * 0.5
    return mixing.repad(0.9 * (aim * darker + (1 - aim * darker) * lighter) + 0.1 * rgb, alpha)


def glass(rgba: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Clear inside, denser at rim and details, with a highlight at the upper left."""
    rgb, alpha = rgba[:, :3], rgba[:, 3:]
    size = rgba.shape[-1]
    inside = mixing.blur(alpha, 3) ** 2
    light = rgb.mean(1, keepdim=True)
    detail = (light - mixing.blur(light, 4)).abs() * 2.5
    clear = 0.22 + 0.12 * torch.rand(len(rgba), 1, 1, 1, generator=generator)
    seen = (clear + 0.8 * (1 - inside) + detail).clamp(0, 1)
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    shine = (1 - ((x - 0.37) ** 2 * 1.6 + (y - 0.32) ** 2).sqrt() / 0.13).clamp(0, 1) * inside
    tint = rgb + (1 - rgb) * 0.3
    return mixing.repad(tint + (1 - tint) * shine, alpha * torch.maximum(seen, 0.85 * shine))


def glowing(rgba: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Brightened, with a wide halo in the subject's own colour."""
    rgb, alpha = rgba[:, :3], rgba[:, 3:]
    mean = (rgb * alpha).sum((2, 3), keepdim=True) / alpha.sum((2, 3), keepdim=True).clamp(min=1e-4)
    colour = mean / mean.amax(1, keepdim=True).clamp(min=1e-4)
    strength = 0.75 + 0.2 * torch.rand(len(rgba), 1, 1, 1, generator=generator)
    halo = (1.5 * mixing.blur(alpha, 9)).clamp(0, 1) * strength
    total = alpha + halo * (1 - alpha)
    bright = (rgb * 1.15 + 0.05).clamp(0, 1)
    return mixing.repad((bright * alpha + colour * halo * (1 - alpha)) / total.clamp(min=1e-4), total)


def smoke(count: int, colour: tuple[float, float, float], generator: torch.Generator) -> torch.Tensor:
    """Rising clouds, soft throughout."""
    size = data.SIZE
    cells = [mixing.smooth_noise(count, size, number, generator) for number in (4, 8, 16)]
    cloud = 0.5 * cells[0] + 0.32 * cells[1] + 0.18 * cells[2]
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    middle = 0.35 * (mixing.smooth_noise(count, size, 2, generator)[..., :1] - 0.5)
    column = torch.exp(-(((x - middle) / (0.55 - 0.2 * y)) ** 2) * 1.5) * (1 - ((y - 0.5).abs() * 2) ** 4)
    alpha = ((cloud - 0.2) * 2.8 * column).clamp(0, 0.95)
    shade = 0.75 + 0.35 * cells[1]
    rgb = torch.tensor(colour).view(1, 3, 1, 1) * shade
    return mixing.repad(rgb.expand(count, 3, size, size), alpha)


MATERIALS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "glass": glass,
    "glowing": glowing,
    **{name: partial(tinted, colour=colour) for name, colour in COLOURS.items()},
}
