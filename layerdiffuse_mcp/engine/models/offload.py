"""How much of a model is on the device at once: the three levels, what each takes, and which one fits.

| level     | on the device at once                                                              |
|-----------|------------------------------------------------------------------------------------|
| `none`    | everything                                                                         |
| `in_turn` | the text encoders, or the denoiser, or the autoencoder and the transparency files  |
| `layers`  | as `in_turn`, but of the denoiser's blocks one after another as they are computed  |

Whatever is not on the device takes no memory of its own: it is read from the memory-mapped file when its phase begins,
which the system keeps in its cache as long as there is room. Results are the same at every level, bit for bit.

    sizes = sizes_of(checkpoint, placement, transparency)
    level = fitting(sizes.drawing(1024 * 1024, 1024 * 1024, placement), budget)
    blocks = BlockByBlock(stack, device)          # from here on the denoiser needs no more than a block
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from layerdiffuse_mcp.engine.device.placement import Placement
from layerdiffuse_mcp.engine.weights.checkpoint import Checkpoint, Part
from layerdiffuse_mcp.engine.weights.patcher import PatchStack
from layerdiffuse_mcp.families.spec import FamilySpec, Parameters, Phase

Level = Literal["none", "in_turn", "layers"]

LEVELS: tuple[Level, ...] = ("none", "in_turn", "layers")
PHASES: tuple[Phase, ...] = ("text", "denoising", "pictures")
"""In which networks are used; the transparency files go with the pictures."""

BLOCK = re.compile(r"((?:.+\.)?(?:resnets|(?:single_)?transformer_blocks)\.\d+)\.")
"""What of a denoiser is moved as one: residual blocks and transformer blocks hold nearly all of its weights."""


@dataclass(frozen=True)
class Sizes:
    """Bytes that a model's networks take in the number formats in which they run, and that they compute with.

    `block`: the most that is there of the denoiser when its blocks are taken one after another. `controls`: how many
    ControlNets are beside it.
    """

    text: int
    denoiser: int
    block: int
    pictures: int
    denoising: int = 0
    decoding: int = 0
    controls: int = 0

    def with_control(self, part: Part, placement: Placement) -> "Sizes":
        """With a ControlNet beside the denoiser; of its blocks the largest counts as if both nets' were there."""
        numbers, size = _numbers(part), placement.dtype.itemsize
        return replace(
            self,
            denoiser=self.denoiser + sum(numbers.values()) * size,
            block=self.block + _largest_block(numbers) * size,
            controls=self.controls + 1,
        )

    def drawing(self, together: int, each: int, placement: Placement) -> "Sizes":
        """With the activations of `together` pixels that are denoised as one batch, in pictures of `each` pixels."""
        size = placement.dtype.itemsize
        pixel = DENOISING + self.controls * CONTROLLED
        return replace(self, denoising=together * pixel * size // 4, decoding=each * DECODING * size // 4)

    def at(self, level: Level) -> int:
        """Bytes on the device at once."""
        if level == "none":
            return self.text + self.denoiser + self.pictures + max(self.denoising, self.decoding)
        denoiser = self.denoiser if level == "in_turn" else self.block
        return max(self.text, denoiser + self.denoising, self.pictures + self.decoding)


DENOISING, DECODING = 2100, 4100
"""Bytes of activations a pixel in float32: the UNet with guidance, the VAE. As measured at full size, 512 px."""


CONTROLLED = 210
"""The same of what a ControlNet adds to the UNet's blocks, computed from the published shapes of both families."""


def sizes_of(checkpoint: Checkpoint, placement: Placement, transparency: int) -> Sizes:
    """What a checkpoint's networks take; `transparency`: numbers in the family's decoder and encoder files."""
    numbers = {name: _numbers(part) for name, part in checkpoint.parts.items()}
    count = {
        phase: sum(sum(numbers.get(name, {}).values()) for name in checkpoint.spec.names(phase)) for phase in PHASES
    }
    blocks = [_largest_block(numbers[name]) for name in checkpoint.spec.names("denoising")]
    vae_bytes = placement.vae_dtype(checkpoint.vae_fits_float16).itemsize
    return Sizes(
        text=count["text"] * placement.text_dtype.itemsize,
        denoiser=count["denoising"] * placement.dtype.itemsize,
        block=max(blocks) * placement.dtype.itemsize,
        pictures=(count["pictures"] + transparency) * vae_bytes,
    )


def estimated_sizes(spec: FamilySpec, placement: Placement) -> Sizes:
    """As `sizes_of`, for a base of that family of which there is no file."""
    numbers = spec.parameters or Parameters(0, 0, 0, 0)
    return Sizes(
        text=numbers.text * placement.text_dtype.itemsize,
        denoiser=numbers.denoiser * placement.dtype.itemsize,
        block=numbers.block * placement.dtype.itemsize,
        pictures=numbers.pictures * placement.vae_dtype(spec.vae_fits_float16).itemsize,
    )


def fitting(sizes: Sizes, budget: int) -> Level:
    """The first level that fits into `budget` bytes, else the last."""
    for level in LEVELS:
        if sizes.at(level) <= budget:
            return level
    return LEVELS[-1]


def lower(level: Level) -> Level | None:
    """The next level down, None below the last."""
    below: list[Level] = [*LEVELS[LEVELS.index(level) + 1 :]]
    return below[0] if below else None


class BlockByBlock:
    """Keeps a UNet's blocks offloaded but for the one that is computed; its other layers stay."""

    def __init__(self, stack: PatchStack, device: torch.device):
        blocks = _by_block([name for name, _ in stack.module.named_parameters()])
        self.rest = blocks.pop(None, [])
        self._stack, self._device = stack, device
        self._handles: list[RemovableHandle] = []
        stack.offload(itertools.chain.from_iterable(blocks.values()))
        for block, names in blocks.items():
            self._watch(stack.module.get_submodule(str(block)), names)

    def _watch(self, block: nn.Module, names: list[str]) -> None:
        def onload(*_: object) -> None:
            self._stack.onload(self._device, names)

        def offload(*_: object) -> None:
            self._stack.offload(names)

        self._handles += [
            block.register_forward_pre_hook(onload),
            block.register_forward_hook(offload, always_call=True),
        ]

    def remove(self) -> None:
        """Let the network be as it was; its weights stay offloaded."""
        for handle in self._handles:
            handle.remove()


def _by_block(names: list[str]) -> dict[str | None, list[str]]:
    blocks: dict[str | None, list[str]] = {}
    for name in names:
        match = BLOCK.match(name)
        blocks.setdefault(match[1] if match else None, []).append(name)
    return blocks


def _numbers(part: Part) -> dict[str, int]:
    return {key: part.weights[key].numel() for key in part.weights}


def _largest_block(numbers: Mapping[str, int]) -> int:
    """The numbers in a UNet's largest block and in all that is in none."""
    blocks = {block: sum(map(numbers.__getitem__, names)) for block, names in _by_block([*numbers]).items()}
    return blocks.pop(None, 0) + max(blocks.values(), default=0)
