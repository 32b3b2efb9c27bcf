"""What a family's networks take in memory, by what is on the device at once; counted, without torch.

    sizes = estimated(spec, 2, 2, 2).drawing(640 * 640, 640 * 640, item=2)
    sizes.at("in_turn")                              # bytes

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

    `block`: the most that is there of the denoiser when its blocks are taken one after another. `activations`: as on
    the family's card. `controls`: how many ControlNets are beside it.
    """

    text: int
    denoiser: int
    block: int
    pictures: int
    denoising: int = 0
    decoding: int = 0
    activations: tuple[int, int] = MEASURED
    controls: int = 0

    def with_control(self, whole: int, block: int) -> "Sizes":
        """With a ControlNet of so many bytes beside the denoiser, and so many in its largest block."""
        controls = self.controls + 1
        return replace(self, denoiser=self.denoiser + whole, block=self.block + block, controls=controls)

    def drawing(self, together: int, each: int, item: int) -> "Sizes":
        """With the activations of `together` pixels that are denoised as one batch, in pictures of `each` pixels.

        item: bytes of a number.
        """
        denoising, decoding = self.activations
        denoising += self.controls * CONTROLLED
        return replace(self, denoising=together * denoising * item // 4, decoding=each * decoding * item // 4)

    def at(self, level: Level) -> int:
        """Bytes on the device at once."""
        if level == "none":
            return self.text + self.denoiser + self.pictures + max(self.denoising, self.decoding)
        denoiser = self.denoiser if level == "in_turn" else self.block
        return max(self.text, denoiser + self.denoising, self.pictures + self.decoding)


def estimated(spec: FamilySpec, text: int, item: int, pictures: int) -> Sizes:
    """Of a base of that family of which there is no file: by bytes of a number in each phase."""
    numbers = spec.parameters or Parameters(0, 0, 0, 0)
    return Sizes(
        text=numbers.text * text,
        denoiser=numbers.denoiser * item,
        block=numbers.block * item,
        pictures=numbers.pictures * pictures,
        activations=spec.activations,
    )


def in_16_bits(spec: FamilySpec) -> dict[str, int]:
    """What one picture of the family's own size takes, in a format of 16 bits, as on a GPU; empty if not known."""
    pixels = spec.native_size**2
    sizes = estimated(spec, 2, 2, 2).drawing(spec.frames * pixels, pixels, 2)
    return {level: sizes.at(level) for level in LEVELS} if spec.parameters else {}
