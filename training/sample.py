"""A look at the networks while they train: deterministic DDIM in twenty lines, no engine needed.

python -m training.sample --work build/training --out sheet.png [--transparent]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from layerdiffuse_mcp.engine.layers.attention_sharing import shared_attention
from layerdiffuse_mcp.engine.layers.attention_sharing_file import SharingModel
from layerdiffuse_mcp.engine.models.networks import UNetNetwork
from layerdiffuse_mcp.engine.types import Conditioning
from training import autoencoder, layer, transparency, unet
from training.captions import Tokens
from training.common import device
from training.text import contexts

PROMPTS = [
    "a red apple",
    "a cat",
    "a rocket",
    "a guitar",
    "a sunflower",
    "a house",
    "a fish",
    "a cup of coffee",
    "a star",
    "a christmas tree",
    "cheese",
    "a hamburger",
    "a penguin",
    "an umbrella",
    "a red car",
    "a mushroom",
]


@torch.no_grad()
def ddim(
    network: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    context: torch.Tensor,
    empty: torch.Tensor,
    *,
    steps: int = 20,
    guidance: float = 4.0,
    seed: int = 1,
) -> torch.Tensor:
    """Scaled latents (B, 4, 16, 16) for text embeddings (B, 77, C)."""
    count = len(context)
    x = torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(seed)).to(device())
    times = torch.linspace(999, 0, steps + 1).long()
    both = torch.cat([empty.expand_as(context), context])
    for now, after in pairwise(times):
        low, high = network(torch.cat([x, x]), now.expand(2 * count).to(device()), both).chunk(2)
        noise = low + guidance * (high - low)
        clean = (x - (1 - unet.SIGNAL[now]).sqrt() * noise) / unet.SIGNAL[now].sqrt()
        signal = unet.SIGNAL[after] if after > 0 else torch.tensor(1.0)
        x = signal.sqrt() * clean + (1 - signal).sqrt() * noise
    return x


def checkerboard(rgba: torch.Tensor) -> torch.Tensor:
    """(B, 4, H, W) red, green, blue, alpha -> (B, 3, H, W) on a checkerboard."""
    y, x = torch.meshgrid(torch.arange(rgba.shape[2]), torch.arange(rgba.shape[3]), indexing="ij")
    board = 0.7 + 0.2 * ((x // 8 + y // 8) % 2)
    return rgba[:, :3] * rgba[:, 3:] + board * (1 - rgba[:, 3:])


def sheet(pictures: torch.Tensor, columns: int = 8) -> Image.Image:
    """(B, 3, H, W) in 0..1 -> one picture, row by row."""
    rows = [torch.cat(list(part), 2) for part in pictures.split(columns)]
    array = torch.cat(rows, 1).permute(1, 2, 0).clamp(0, 1).numpy()
    return Image.fromarray((array * 255).astype(np.uint8))


@torch.no_grad()
def draw(work: Path, prompts: list[str], transparent: bool, guidance: float, seed: int) -> torch.Tensor:
    """Pictures (B, 3, 128, 128): the base's, or the layer file's on a checkerboard."""
    vae, scaling = autoencoder.load(work)
    base, text = unet.load(work)
    tokens = Tokens()
    context, empty = (contexts(text, tokens(said).to(device())) for said in (prompts, [""]))
    if not transparent:
        latents = ddim(lambda x, t, c: base(x, t, c).sample, context, empty, guidance=guidance, seed=seed)
        return transparency.pixels(vae, latents / scaling).cpu()
    model = SharingModel.from_tensors(layer.load(work, layer.TRANSPARENT), base)
    with shared_attention(UNetNetwork(base), model) as shared:
        latents = ddim(lambda x, t, c: shared(x, t, Conditioning(c)), context, empty, guidance=guidance, seed=seed)
    latents = latents / scaling
    _, decoder = transparency.load_pair(work)
    seen = decoder(transparency.pixels(vae, latents), latents).clamp(0, 1).cpu()
    return checkerboard(seen.roll(-1, 1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    parser.add_argument("--out", type=Path, default=Path("sheet.png"))
    parser.add_argument("--transparent", action="store_true")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--prompts", nargs="*", default=PROMPTS)
    arguments = parser.parse_args()
    sheet(draw(arguments.work, arguments.prompts, arguments.transparent, arguments.guidance, arguments.seed)).save(
        arguments.out
    )
