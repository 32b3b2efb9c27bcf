"""A picture in overlapping tiles: whatever is made of it is made of each tile, and laid together by a weighted mean.

    tiles = Tiles.of((2048, 2048), plan.tiling)
    latent = tiles.blend(lambda box: encode(crop(picture, box)), cell=8)
    network = tiled(network, tiles, cell=8)         # a `types.Network` again: samplers need not know

A tile counts fully where it is alone, and falls off linearly to its border where it overlaps another: no border shows,
and memory is that of one tile beside the whole picture's result. One tile is the picture itself, to the last bit.

Source: Bar-Tal et al., "MultiDiffusion" (2023): at each step the mean of a denoiser's answers to overlapping windows.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from layerdiffuse_mcp.api.detail import Box, Tiling
from layerdiffuse_mcp.engine.device.cancellation import check
from layerdiffuse_mcp.engine.types import Conditioning, Network

OnTile = Callable[[], None]
"""Called when a tile is done; may raise to stop."""


@dataclass(frozen=True)
class Tiles:
    """The tiles of a picture of `size` (width, height), all of one size, as boxes in pixels."""

    size: tuple[int, int]
    boxes: tuple[Box, ...]

    @classmethod
    def of(cls, size: tuple[int, int], tiling: Tiling | None) -> "Tiles":
        """As a tiling says; without one the picture is one tile."""
        return cls(size, tiling.boxes(size) if tiling else ((0, 0, *size),))

    @property
    def tile(self) -> tuple[int, int]:
        """Width and height of each."""
        left, top, right, bottom = self.boxes[0]
        return right - left, bottom - top

    def holding(self, mask: Tensor | None, cell: int) -> frozenset[Box]:
        """Those where a mask (B, 1, H, W), in cells of so many pixels, is not 0; all without one or if it is empty."""
        some = frozenset(box for box in self.boxes if mask is not None and bool(crop(mask, box, cell).any()))
        return some or frozenset(self.boxes)

    def blend(self, part: Callable[[Box], Tensor | None], cell: int = 1) -> Tensor:
        """What `part` makes of each tile, (..., h, w) in cells of so many pixels a side, as one: (..., H, W).

        Where it makes nothing of any, there is 0.
        """
        width, height = (side // cell for side in self.size)
        across = _weights([(left // cell, right // cell) for left, _, right, _ in self.boxes], width)
        down = _weights([(top // cell, bottom // cell) for _, top, _, bottom in self.boxes], height)
        whole: Tensor | None = None
        for box, columns, rows in zip(self.boxes, across, down, strict=True):
            check()
            made = part(box)
            if made is None:
                continue
            if len(self.boxes) == 1:
                return made
            if whole is None:
                whole = made.new_zeros(*made.shape[:-2], height, width)
            crop(whole, box, cell).add_(made * torch.outer(rows, columns).to(made))
        assert whole is not None
        return whole


def crop(picture: Tensor, box: Box, cell: int = 1) -> Tensor:
    """The part of (..., H, W), in cells of so many pixels a side, that a box in pixels covers: a view."""
    left, top, right, bottom = (side // cell for side in box)
    return picture[..., top:bottom, left:right]


def tiled(network: Network, tiles: Tiles, asked: Collection[Box], cell: int, on_tile: OnTile) -> Network:
    """A network that is asked of one tile after another; itself where there is but one.

    What goes in is cropped to the tile, condition latents included, and the conditioning says which tile it is, for
    what adapters keep beside it. Of tiles that are not `asked` the output is 0.
    """
    if len(tiles.boxes) == 1:
        return network

    def ask(x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        def part(box: Box) -> Tensor | None:
            if box not in asked:
                return None
            made = network(crop(x, box, cell).contiguous(), timestep, replace(conditioning, box=box)).float()
            on_tile()
            return made

        return tiles.blend(part, cell)

    return ask


def _weights(spans: Sequence[tuple[int, int]], length: int) -> list[Tensor]:
    """How much each span (begin, end) of an axis counts at its places, by `spans`; all of a place together 1."""
    distinct = sorted(set(spans))
    ramps: dict[tuple[int, int], Tensor] = {}
    total = torch.zeros(length)
    for index, (begin, end) in enumerate(distinct):
        place = torch.arange(begin, end) + 0.5
        ramp = torch.ones(end - begin)
        if index > 0:
            ramp = torch.minimum(ramp, (place - begin) / max(1, distinct[index - 1][1] - begin))
        if index + 1 < len(distinct):
            ramp = torch.minimum(ramp, (end - place) / max(1, end - distinct[index + 1][0]))
        ramps[begin, end] = ramp
        total[begin:end] += ramp
    return [ramps[begin, end] / total[begin:end] for begin, end in spans]
