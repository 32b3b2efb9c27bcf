"""What a family's networks take in memory, by what is on the device at once; counted, without torch.

    sizes = estimated(spec, 2, 2, 2).drawing(640 * 640, 640 * 640)
    sizes.at("in_turn")                              # bytes
    sizes.pixels_at_once("in_turn", 8 * GB)          # how many may be denoised as one batch

`engine/models/offload.py` says what the levels are, and counts the same of a base's own files.
"""

from dataclasses import dataclass, replace
from typing import Literal

from layerdiffuse_mcp.families.spec import MEASURED, FamilySpec, Parameters

Level = Literal["none", "in_turn", "layers"]
CONTROLLED = 210
"""Bytes of activations a pixel in float32 that a ControlNet adds to the UNet's blocks, computed from the published
shapes of both families."""
LEVELS: tuple[Level, ...] = ("none", "in_turn", "layers")


@dataclass(frozen=True)
class Sizes:
    """Bytes that a model's networks take in the number formats in which they run, and that they compute with.

    `block`: the most that is there of the denoiser when its blocks are taken one after another. `activations`: a pixel
    of what is denoised, and of what is decoded.
    """

    text: int
    denoiser: int
    block: int
    pictures: int
    denoising: int = 0
    decoding: int = 0
    activations: tuple[int, int] = MEASURED

    def beside_denoiser(self, whole: int, block: int, pixel: int = 0) -> "Sizes":
        """With a network of so many bytes beside the denoiser, so many in its largest block, and so many a pixel."""
        denoising, decoding = self.activations
        activations = denoising + pixel, decoding
        return replace(self, denoiser=self.denoiser + whole, block=self.block + block, activations=activations)

    def drawing(self, together: int, each: int) -> "Sizes":
        """With the activations of `together` pixels that are denoised as one batch, in pictures of `each` pixels."""
        denoising, decoding = self.activations
        return replace(self, denoising=together * denoising, decoding=each * decoding)

    def at(self, level: Level) -> int:
        """Bytes on the device at once."""
        if level == "none":
            return self._beside(level) + max(self.denoising, self.decoding)
        return max(self.text, self._beside(level) + self.denoising, self.pictures + self.decoding)

    def pixels_at_once(self, level: Level, budget: int) -> int:
        """How many pixels may be denoised as one batch in `budget` bytes."""
        return max(0, budget - self._beside(level)) // self.activations[0]

    def _beside(self, level: Level) -> int:
        """Bytes of weights on the device while it denoises."""
        everything = self.text + self.denoiser + self.pictures
        return {"none": everything, "in_turn": self.denoiser, "layers": self.block}[level]


def estimated(spec: FamilySpec, text: int, item: int, pictures: int) -> Sizes:
    """Of a base of that family of which there is no file, with a usual layer: by bytes of a number in each phase."""
    numbers = spec.parameters or Parameters(0, 0, 0, 0)
    denoising, decoding = spec.activations
    return Sizes(
        text=numbers.text * text,
        denoiser=(numbers.denoiser + numbers.layer) * item,
        block=(numbers.block + numbers.layer) * item,
        pictures=numbers.pictures * pictures,
        activations=(denoising * item // 4, decoding * pictures // 4),
    )


def in_16_bits(spec: FamilySpec) -> dict[str, int]:
    """What one picture of the family's own size takes, in a format of 16 bits, as on a GPU; empty if not known."""
    pixels = spec.native_size**2
    sizes = estimated(spec, 2, 2, 2).drawing(spec.frames * pixels, pixels)
    return {level: sizes.at(level) for level in LEVELS} if spec.parameters else {}
