"""What is measured of drawn pictures: whether onlookers can name them, how sharp they are, whether colour words hold.

    subjects()                        the 100 subjects to be named, drawn at random once and for all
    sheets(pictures)                  numbered pictures for onlookers, who see no prompts
    named(answers)                    how many a majority of the onlookers named
    sharpness(drawn, pictures)        gradient energy beside the training pictures'
    colours_right(pictures, words)    the share of pictures that mostly show the colour asked for

Pictures are (B, 4, H, W): red, green, blue, alpha in 0..1. Answers are a list for each onlooker, a word or two for each
number: `[["apple", "cat", ...], ...]`, as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from training import mixing
from training.concepts import concepts, with_article
from training.materials import COLOURS
from training.sample import checkerboard, sheet

SEED = 20261125  # of the subjects, written down on 25 November 2026, before the training that it judges
COUNT, COLOURED = 100, 20
PER_SHEET, COLUMNS, LABEL = 20, 5, 14  # pictures a sheet and a row; pixels for a number
VISIBLE = 0.5


def subjects(count: int = COUNT, seed: int = SEED) -> list[list[str]]:
    """The words of `count` different subjects."""
    known = [*concepts(wide=True).values()]
    return [known[number] for number in np.random.default_rng(seed).choice(len(known), count, replace=False)]


def colour_prompts() -> list[tuple[str, str]]:
    """(prompt, colour word): every colour of the first subjects whose words name none."""
    plain = [words[0] for words in subjects() if not {*words[0].split()} & {*COLOURS, "golden"}][:COLOURED]
    return [(with_article(f"{colour} {word}"), colour) for word in plain for colour in COLOURS]


def sheets(pictures: torch.Tensor) -> list[Image.Image]:
    """The pictures on checkerboards, `PER_SHEET` a sheet, each with its number (from 1) above."""
    found = []
    size = pictures.shape[-1]
    for start in range(0, len(pictures), PER_SHEET):
        some = checkerboard(pictures[start : start + PER_SHEET])
        labelled = torch.cat([torch.ones(len(some), 3, LABEL, size), some], 2)
        image = sheet(torch.cat([labelled, torch.ones(-len(some) % COLUMNS, *labelled.shape[1:])]), COLUMNS)
        pen = ImageDraw.Draw(image)
        for place in range(len(some)):
            row, column = divmod(place, COLUMNS)
            pen.text((column * size + 4, row * (size + LABEL) + 1), str(start + place + 1), fill=(0, 0, 0))
        found.append(image)
    return found


def singular(words: str) -> str:
    """ "a Cherries " -> "a cherry": what plurals and singulars have in common."""
    plain = words.lower().strip()
    return plain[:-3] + "y" if plain.endswith("ies") else plain.removesuffix("s")


def says(answer: str, words: Sequence[str]) -> bool:
    """Whether an answer holds one of the subject's words whole: "a hot dog" is a "hot dog", and "dog" is none."""
    return any(f" {singular(word)} " in f" {singular(answer)} " for word in words)


def named(answers: Sequence[Sequence[str]], asked: Sequence[Sequence[str]]) -> list[bool]:
    """For each subject, whether more than half of the onlookers named it. Raises `ValueError` when an onlooker gave
    more or fewer answers than there are pictures.
    """
    votes = [[says(answer, words) for answer, words in zip(given, asked, strict=True)] for given in answers]
    return [2 * sum(each) > len(answers) for each in zip(*votes, strict=True)]


def gradient_energy(pictures: torch.Tensor) -> torch.Tensor:
    """(B,): the mean squared difference between neighbours of pictures on mid-grey."""
    flat = mixing.flattened(pictures)
    return flat.diff(dim=2).square().mean((1, 2, 3)) + flat.diff(dim=3).square().mean((1, 2, 3))


def sharpness(drawn: torch.Tensor, pictures: torch.Tensor) -> float:
    """Gradient energy of drawn pictures by that of the training pictures of the same subjects."""
    return float(gradient_energy(drawn).mean() / gradient_energy(pictures).mean())


def oklab(rgb: torch.Tensor) -> torch.Tensor:
    """sRGB (..., 3) in 0..1 -> lightness, a, b, in which distances are about those that are seen (Ottosson 2020)."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp(min=0) + 0.055) / 1.055) ** 2.4)
    lms = linear @ torch.tensor(
        [[0.4122214708, 0.2119034982, 0.0883024619], [0.5363325363, 0.6806995451, 0.2817188376],
         [0.0514459929, 0.1073969566, 0.6299787005]]
    )  # fmt: skip
    return lms.clamp(min=0).pow(1 / 3) @ torch.tensor(
        [[0.2104542553, 1.9779984951, 0.0259040371], [0.7936177850, -2.4285922050, 0.7827717662],
         [-0.0040720468, 0.4505937099, -0.8086757660]]
    )  # fmt: skip


def main_colour(picture: torch.Tensor) -> str | None:
    """The colour word nearest to most of the visible pixels of a picture (4, H, W); None if nothing is visible."""
    seen = picture[:3, picture[3] > VISIBLE].T
    if not len(seen):
        return None
    near = torch.cdist(oklab(seen), oklab(torch.tensor([*COLOURS.values()]))).argmin(1)
    return [*COLOURS][int(near.bincount(minlength=len(COLOURS)).argmax())]


def colours_right(pictures: torch.Tensor, words: Sequence[str]) -> float:
    """The share of pictures whose main colour is the one of `words`."""
    return sum(main_colour(picture) == word for picture, word in zip(pictures, words, strict=True)) / len(words)
