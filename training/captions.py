"""What the pictures are called: captions, and their tokens for the cut-down CLIP tokenizer."""

from __future__ import annotations

import numpy as np
import torch

from layerdiffuse_mcp.text.tokenizer import clip_tokenizer
from training.concepts import with_article

ROWS = 512 + 2500 + 2  # byte symbols, the first 2,500 merges, start and end
LENGTH = 77


FORM_SHARES = np.array([0.6, 0.2, 0.2])  # of `forms`, in their order


def forms(words: list[str]) -> list[str]:
    """["red apple", "apple"] -> ["a red apple", "red apple", "an apple"]: few, so that each is learnt."""
    return list(dict.fromkeys([with_article(words[0]), words[0], *map(with_article, words[1:2])]))


def caption(
    words: list[str], rng: np.random.Generator, *, style: str = "3d", material: str = "", background: str | None = None
) -> str:
    """A caption such as "a red apple", "red apple, 3d", "a glass apple" or "an apple, flat, on a meadow": the subject
    in one of at most three forms, with its look and background.
    """
    named = forms([f"{material} {name}" if material else name for name in words])
    text = named[int(rng.choice(len(named), p=FORM_SHARES[: len(named)] / FORM_SHARES[: len(named)].sum()))]
    if style != "3d" or rng.random() < 0.25:
        text += f", {style}"
    if background:
        text += (", " if rng.random() < 0.5 else " ") + background
    return text


class Tokens:
    """Captions to token rows, each caption tokenized once."""

    def __init__(self) -> None:
        self.tokenizer = clip_tokenizer(ROWS)
        self.known: dict[str, list[int]] = {}

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """Token ids (len(texts), 77): start, the text, the end token up to the full length."""
        return torch.tensor([self._row(text) for text in texts])

    def _row(self, text: str) -> list[int]:
        if text not in self.known:
            ids = [self.tokenizer.start, *self.tokenizer.encode(text)[: LENGTH - 2]]
            self.known[text] = ids + [self.tokenizer.end] * (LENGTH - len(ids))
        return self.known[text]
