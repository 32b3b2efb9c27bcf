"""Stage 2: what the base UNet learns from, encoded once: the vocabulary's pictures, a little moved, on many
backgrounds.

latents.pt   scaled latents (concepts, variants, 4, 16, 16), and for each the background's words
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from training import autoencoder, data, mixing
from training.backgrounds import KINDS, draw
from training.common import autocast
from training.concepts import concepts

GREY_SHARE = 0.5
MOVE = {"scale": (0.88, 1.0), "shift": 0.05, "turn": 0.06}


def vocabulary(work: Path) -> tuple[np.ndarray, list[list[str]]]:
    """The vocabulary's 3d pictures (uint8 N, 128, 128, 4) and the words of each."""
    pictures, rows = data.load(work)
    index = {row["name"]: number for number, row in enumerate(rows) if row["style"] == "3d"}
    words = {name: found for name, found in concepts().items() if name in index}
    return np.stack([pictures[index[name]] for name in words]), list(words.values())


@torch.no_grad()
def build(work: Path, variants: int) -> None:
    """Writes latents.pt below `work`, unless it is there."""
    if (work / "latents.pt").exists():
        return
    vae, scaling = autoencoder.load(work)
    pictures, _ = vocabulary(work)
    rng, generator = np.random.default_rng(2), torch.Generator().manual_seed(2)
    kinds = list(KINDS)
    latents, names = [], []
    for number, picture in enumerate(pictures):
        rgba = mixing.to_tensor(np.repeat(picture[None], variants, 0))
        rgba = mixing.move(rgba, generator, **MOVE)
        chosen = [
            kinds[0] if rng.random() < GREY_SHARE else kinds[int(rng.integers(1, len(kinds)))] for _ in range(variants)
        ]
        behind = torch.from_numpy(np.stack([draw(kind, rng) for kind in chosen])).permute(0, 3, 1, 2)
        image = mixing.composite(rgba, behind) * 2 - 1
        with autocast():
            mean = torch.cat([vae.encode(part).latent_dist.mean.float() for part in image.split(16)])
        latents.append((mean * scaling).half())
        names.append([kinds.index(kind) for kind in chosen])
        if number % 20 == 0:
            print(number, "of", len(pictures), flush=True)
    torch.save({"latents": torch.stack(latents), "kinds": torch.tensor(names)}, work / "latents.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    parser.add_argument("--variants", type=int, default=64)
    arguments = parser.parse_args()
    build(arguments.work, arguments.variants)
