"""The subjects that the pocket model learns by name, in their styles and materials, and what smoke looks like.

for look in LOOKS: cutouts(subject, look, count, generator)       (count, 4, 128, 128), a little moved
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from training import data, mixing
from training.captions import caption
from training.concepts import concepts
from training.materials import COLOURS, MATERIALS, SMOKE, smoke

MOVE = {"scale": (0.88, 1.0), "shift": 0.05, "turn": 0.06}


# False leaves the first table of `concepts.py` in one look: a third of the subjects, and of the time for UNet and layer
# files
WIDE = True


class Look(NamedTuple):
    """How a subject is shown: a rendering of the data, and a material put on it or none."""

    style: str
    material: str = ""


LOOKS = (
    Look("3d"),
    Look("flat"),
    Look("3d", "glass"),
    Look("3d", "glowing"),
    *(Look("3d", colour) for colour in COLOURS),
)
WIDE_SHARES = (0.6, 0.12, 0.07, 0.07, *([0.14 / len(COLOURS)] * len(COLOURS)))
SHARES = WIDE_SHARES if WIDE else (1.0, *([0.0] * (len(LOOKS) - 1)))  # of the pictures, in the same order


@dataclass(frozen=True)
class Subject:
    """What a caption calls it, and its picture (128, 128, 4), uint8, in each style; smoke has a colour instead."""

    words: list[str]
    pictures: dict[str, np.ndarray]
    smoke: tuple[float, float, float] | None = None

    def has(self, look: Look) -> bool:
        """Whether there is a picture of this look; smoke has but one."""
        if self.smoke or not WIDE:
            return look == LOOKS[0]
        return look.style in self.pictures and bool(self.called(look))

    def called(self, look: Look) -> list[str]:
        """Its words in this look: a colour takes the place of the colour in "red apple"."""
        if look.material not in COLOURS:
            return self.words
        return [words for words in self.words if not {*words.split()} & {*COLOURS, "golden", "gold"}]

    def caption(self, rng: np.random.Generator, look: Look = LOOKS[0], background: str | None = None) -> str:
        """What is said of its picture in this look."""
        return caption(self.called(look), rng, style=look.style, material=look.material, background=background)


def vocabulary(work: Path) -> list[Subject]:
    """Every subject; pictures that are held out of the autoencoder's training are left out here too."""
    pictures, rows = data.load(work)
    found: dict[str, dict[str, np.ndarray]] = {}
    for number, row in enumerate(rows):
        if not row["held_out"]:
            found.setdefault(row["name"], {})[row["style"]] = pictures[number]
    for name in data.NO_3D & found.keys():
        found[name]["3d"] = found[name]["noto"]
    named = [Subject(words, found[name]) for name, words in concepts(WIDE).items() if "3d" in found.get(name, {})]
    if not WIDE:
        return named
    clouds = [Subject([f"{name} smoke", f"cloud of {name} smoke"], {}, colour) for name, colour in SMOKE.items()]
    return [*named, Subject(["smoke", "cloud of smoke"], {}, SMOKE["grey"]), *clouds]


def cutouts(subject: Subject, look: Look, count: int, generator: torch.Generator) -> torch.Tensor:
    """(count, 4, 128, 128) in 0..1: the subject in this look, each a little moved and mirrored half of the time."""
    if subject.smoke:
        return smoke(count, subject.smoke, generator)
    rgba = mixing.to_tensor(np.repeat(subject.pictures[look.style][None], count, 0))
    rgba = mixing.move(rgba, generator, **MOVE)
    return MATERIALS[look.material](rgba, generator) if look.material else rgba
