"""Stage 2: what the base UNet learns from, encoded once: every subject in its looks, a little moved, on mid-grey and on
drawn backgrounds.

latents.pt   latents: scaled, (N, 4, 16, 16) fp16; subject, look, kind: (N,) indices into the vocabulary, LOOKS, KINDS
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from training import autoencoder, mixing
from training.backgrounds import KINDS, draw
from training.common import autocast, device, once
from training.materials import COLOURS
from training.vocabulary import LOOKS, SHARES, Subject, cutouts, vocabulary

# of each look: on grey, on other backgrounds; few, so that they are learnt
VARIANTS = ((5, 3), (2, 1), (2, 1), (2, 1), *[(1, 0)] * len(COLOURS))
TINTS = range(len(LOOKS) - len(COLOURS), len(LOOKS))  # the looks that are colours; each subject is shown in a few
TINTS_EACH = 4
GREY_SHARE = 0.85  # of the pictures that are drawn while training


def ordinary_latents(work: Path) -> dict[str, torch.Tensor]:
    """The set above, made once."""
    return once(work / "latents.pt", lambda: _latents(work))


def held_latents(work: Path) -> dict[str, torch.Tensor]:
    """One more of every subject, moved as in no picture of the set: scaled latents (N, 4, 16, 16) of each in turn, on
    grey and in 3D; made once.
    """
    return once(work / "held_latents.pt", lambda: _held_latents(work))


@torch.no_grad()
def _held_latents(work: Path) -> dict[str, torch.Tensor]:
    vae, scaling = autoencoder.load(work)
    generator = torch.Generator().manual_seed(20)
    found = []
    for subject in vocabulary(work):
        rgba = cutouts(subject, LOOKS[0], 1, generator)
        with autocast():
            found.append(vae.encode(mixing.flattened(rgba).to(device()) * 2 - 1).latent_dist.mean.float() * scaling)
    return {"latents": torch.cat(found).half().cpu()}


def shown(subject: Subject, rng: np.random.Generator) -> list[int]:
    """The looks, as places in LOOKS, that it is encoded in: all but the colours, and some of these."""
    some = {*rng.choice(TINTS, TINTS_EACH, replace=False).tolist()}
    return [place for place, look in enumerate(LOOKS) if subject.has(look) and (place not in TINTS or place in some)]


@torch.no_grad()
def _latents(work: Path) -> dict[str, torch.Tensor]:
    vae, scaling = autoencoder.load(work)
    rng, generator = np.random.default_rng(2), torch.Generator().manual_seed(2)
    kinds = list(KINDS)
    found, facts = [], []
    for number, subject in enumerate(vocabulary(work)):
        for place in shown(subject, rng):
            look, (grey, other) = LOOKS[place], VARIANTS[place]
            chosen = [0] * grey + [int(rng.integers(1, len(kinds))) for _ in range(other)]
            rgba = cutouts(subject, look, len(chosen), generator)
            behind = torch.from_numpy(np.stack([draw(kinds[kind], rng) for kind in chosen])).permute(0, 3, 1, 2)
            with autocast():
                mean = vae.encode(mixing.composite(rgba, behind).to(device()) * 2 - 1).latent_dist.mean.float()
            found.append((mean * scaling).half().cpu())
            facts += [(number, place, kind) for kind in chosen]
        if number % 50 == 0:
            print(number, "subjects", flush=True)
    subject, look, kind = torch.tensor(facts).unbind(1)
    return {"latents": torch.cat(found), "subject": subject, "look": look, "kind": kind}


class Drawn:
    """Draws rows of an encoded set: a subject, all in turn in an order of chance, then a look by `SHARES`, then one of
    its variants.
    """

    def __init__(self, subject: torch.Tensor, look: torch.Tensor, kind: torch.Tensor | None = None) -> None:
        self.rows: dict[tuple[int, int, bool], np.ndarray] = {}
        self.turn: list[int] = []
        grey = torch.ones_like(subject, dtype=torch.bool) if kind is None else kind == 0
        for number in range(int(subject.max()) + 1):
            for place in range(len(LOOKS)):
                for on_grey in (True, False):
                    here = (subject == number) & (look == place) & (grey == on_grey)
                    if here.any():
                        self.rows[number, place, on_grey] = torch.nonzero(here).flatten().numpy()
        self.tints: dict[int, list[int]] = {}
        for number, place, _ in self.rows:
            if place in TINTS:
                self.tints.setdefault(number, []).append(place)
        self.subjects = int(subject.max()) + 1
        self.other = kind is not None

    def __call__(self, rng: np.random.Generator, count: int) -> Iterator[tuple[int, int, int]]:
        """`count` times (row, subject, look)."""
        for _ in range(count):
            self.turn = self.turn or rng.permutation(self.subjects).tolist()
            number = self.turn.pop()
            place = int(rng.choice(len(LOOKS), p=SHARES))
            if place in TINTS:  # of the colours, those that it was shown in
                place = int(rng.choice(self.tints.get(number, [0])))
            if (number, place, True) not in self.rows:
                place = 0
            on_grey = not self.other or bool(rng.random() < GREY_SHARE)
            rows = self.rows.get((number, place, on_grey), self.rows[number, place, True])
            yield int(rng.choice(rows)), number, place


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    arguments = parser.parse_args()
    ordinary_latents(arguments.work)
