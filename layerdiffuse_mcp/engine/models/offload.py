"""How much of a model is on the device at once: the three levels, what each takes, and which one fits.

| level     | on the device at once                                                              |
|-----------|------------------------------------------------------------------------------------|
| `none`    | everything                                                                         |
| `in_turn` | the text encoders, or the denoiser, or the autoencoder and the transparency files  |
| `layers`  | as `in_turn`, but of the denoiser's blocks one after another as they are computed  |

Whatever is not on the device takes no memory of its own: it is read from the memory-mapped file when its phase begins,
which the system keeps in its cache as long as there is room. Results are the same at every level, bit for bit.

    sizes = sizes_of(checkpoint, placement, transparency)
    level = fitting(sizes.drawing(1024 * 1024, 1024 * 1024), budget)
    blocks = BlockByBlock(stack, device)          # from here on the denoiser needs no more than a block
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from layerdiffuse_mcp.engine.device.placement import Placement
from layerdiffuse_mcp.engine.weights.checkpoint import Checkpoint, Part
from layerdiffuse_mcp.engine.weights.patcher import PatchStack
from layerdiffuse_mcp.families.memory import CONTROLLED, LEVELS, Level, Sizes, estimated
from layerdiffuse_mcp.families.spec import FamilySpec, Phase

PHASES: tuple[Phase, ...] = ("text", "denoising", "pictures")
"""In which networks are used; the transparency files go with the pictures."""

BLOCK = re.compile(r"((?:.+\.)?(?:resnets|(?:single_)?transformer_blocks)\.\d+)\.")
"""What of a denoiser is moved as one: residual blocks and transformer blocks hold nearly all of its weights."""


def with_addition(sizes: Sizes, part: Part, phase: Phase, placement: Placement) -> Sizes:
    """With a network beside the others of its phase; its largest block counts beside the denoiser's."""
    numbers, item = _numbers(part), placement.dtype.itemsize
    whole = sum(numbers.values())
    if phase == "text":
        return replace(sizes, text=sizes.text + whole * placement.text_dtype.itemsize)
    return sizes.beside_denoiser(whole * item, _largest_block(numbers) * item, CONTROLLED * item // 4)


def sizes_of(checkpoint: Checkpoint, placement: Placement, transparency: int) -> Sizes:
    """What a checkpoint's networks take; `transparency`: numbers in the family's decoder and encoder files."""
    numbers = {name: _numbers(part) for name, part in checkpoint.parts.items()}
    count = {
        phase: sum(sum(numbers.get(name, {}).values()) for name in checkpoint.spec.names(phase)) for phase in PHASES
    }
    blocks = [_largest_block(numbers[name]) for name in checkpoint.spec.names("denoising")]
    dtype = partial(phase_dtype, checkpoint.spec, placement, fits_float16=checkpoint.vae_fits_float16)
    text, denoising, pictures = (dtype(phase).itemsize for phase in PHASES)
    pixel, decoded = checkpoint.spec.activations
    return Sizes(
        text=count["text"] * text,
        denoiser=count["denoising"] * denoising,
        block=max(blocks) * denoising,
        pictures=(count["pictures"] + transparency) * pictures,
        activations=(pixel * denoising // 4, decoded * pictures // 4),
    )


def estimated_sizes(spec: FamilySpec, placement: Placement) -> Sizes:
    """As `sizes_of`, for a base of that family of which there is no file."""
    dtype = partial(phase_dtype, spec, placement, fits_float16=spec.vae_fits_float16)
    return estimated(spec, *(dtype(phase).itemsize for phase in PHASES))


def phase_dtype(spec: FamilySpec, placement: Placement, phase: Phase, *, fits_float16: bool) -> torch.dtype:
    """The number format of a phase's networks; those of a pipeline hand tensors to each other as they are."""
    if spec.drawer == "diffusers" or phase == "denoising":
        return placement.dtype
    return placement.text_dtype if phase == "text" else placement.vae_dtype(fits_float16)


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
