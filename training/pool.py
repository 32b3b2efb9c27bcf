"""Batches that are made once and shown several times: what the frozen networks make of a picture costs more than
learning from it does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch

Batch = TypeVar("Batch")


class Pool(Generic[Batch]):
    """Batches of pictures of several sizes, from `make`, each drawn about `shown` times; up to `kept` of each size.

    What it draws is what `make` made, the same object each time.
    """

    def __init__(
        self, make: Callable[[int], Batch], generator: torch.Generator, *, shown: int = 4, kept: int = 80
    ) -> None:
        self.make, self.generator = make, generator
        self.shown, self.most = shown, kept
        self.kept: dict[int, list[Batch]] = {}

    def draw(self, size: int) -> Batch:
        """The next batch of this size: once in `shown` times a fresh one, in place of any other, else a kept one."""
        kept = self.kept.setdefault(size, [])
        if len(kept) >= 2 and chance(self.generator) >= 1 / self.shown:
            return kept[int(chance(self.generator) * len(kept))]
        batch = self.make(size)
        if len(kept) < self.most:
            kept.append(batch)
        else:
            kept[int(chance(self.generator) * len(kept))] = batch
        return batch

    def clear(self) -> None:
        """Make all batches anew, as the networks that made them have changed."""
        self.kept.clear()


def chance(generator: torch.Generator) -> float:
    """A number in 0..1."""
    return float(torch.rand(1, generator=generator))
