"""What the layer files of several pictures learn from: a subject with alpha, a drawn background, their exact composite.

triples.pt   latents: scaled, (N, 3, 4, 16, 16) fp16, of foreground (transparent), background and blended picture;
             given: uint8 (N, 2, 3, 128, 128), the foreground on mid-grey and the background; subject, kind: (N,)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from training import autoencoder, mixing, transparency
from training.backgrounds import KINDS, draw
from training.common import autocast, device, once
from training.vocabulary import LOOKS, cutouts, vocabulary

ROLES = ("foreground", "background", "blended")
VARIANTS = 6  # of each subject


def triples(work: Path) -> dict[str, torch.Tensor]:
    """The set above, made once."""
    return once(work / "triples.pt", lambda: _triples(work))


@torch.no_grad()
def _triples(work: Path) -> dict[str, torch.Tensor]:
    vae, scaling = autoencoder.load(work)
    encoder, _ = transparency.load_pair(work)
    rng, generator = np.random.default_rng(9), torch.Generator().manual_seed(9)
    kinds = list(KINDS)
    latents, given, facts = [], [], []
    for number, subject in enumerate(vocabulary(work)):
        chosen = [int(rng.integers(1, len(kinds))) for _ in range(VARIANTS)]
        rgba = cutouts(subject, LOOKS[0], VARIANTS, generator)
        behind = torch.from_numpy(np.stack([draw(kinds[kind], rng) for kind in chosen])).permute(0, 3, 1, 2)
        blended = mixing.composite(rgba, behind)
        with autocast():
            ordinary = vae.encode(torch.cat([behind, blended]).to(device()) * 2 - 1).latent_dist.mean.float()
            transparent = transparency.hide(vae, encoder, rgba.to(device()))[0].float()
        three = torch.stack([transparent, *ordinary.chunk(2)], 1)
        latents.append((three * scaling).half().cpu())
        pictures = torch.stack([mixing.flattened(rgba), behind], 1)
        given.append((pictures * 255).round().to(torch.uint8))
        facts += [(number, kind) for kind in chosen]
    subject, kind = torch.tensor(facts).unbind(1)
    return {"latents": torch.cat(latents), "given": torch.cat(given), "subject": subject, "kind": kind}
