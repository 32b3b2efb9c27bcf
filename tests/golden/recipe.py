"""How the golden cases' weights and inputs are made: from a name, a shape and a salt, and nothing else.

The reference's side knows the same few formulas, so no weight file has to be kept: a network is filled from the
names of its tensors. `Recipe("")` makes what the folder `data/` was computed from.
"""

import math
import zlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Shapes = Mapping[str, Iterable[int]]


class Recipe:
    """Draws every tensor of one golden set; `salt` is what tells the sets apart.

    All tensors are float32, drawn by a CPU generator that is seeded with the CRC-32 of salt + name.
    """

    def __init__(self, salt: str = "") -> None:
        self.salt = salt

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(zlib.crc32(f"{self.salt}{name}".encode()))

    def noise(self, name: str, shape: Iterable[int]) -> Tensor:
        """Standard normal."""
        return torch.randn(tuple(shape), generator=self._generator(name))

    def uniform(self, name: str, shape: Iterable[int]) -> Tensor:
        """Uniform in [0, 1)."""
        return torch.rand(tuple(shape), generator=self._generator(name))

    def weight(self, name: str, shape: Iterable[int]) -> Tensor:
        """A network's tensor: matrices scaled by fan-in, norms near one, biases near zero, offsets gentle."""
        shape = tuple(shape)
        drawn = self.noise(name, shape)
        fan_in = max(1, math.prod(shape[1:]))
        matrix = len(shape) > 1
        if "::diff::" in name or "::lora::" in name:
            return drawn * (0.3 / math.sqrt(fan_in) if matrix else 0.05)
        if matrix:
            return drawn * (1.0 / math.sqrt(fan_in))
        return 1.0 + 0.1 * drawn if name.endswith("weight") else 0.05 * drawn

    def lora_file(self, name: str, shapes: Shapes, rank: int = 4) -> dict[str, Tensor]:
        """An SDXL attention file of the method `name`: low-rank offsets for q, k, v and out of every attention.

        `::lora::0` is up (out, rank), `::lora::1` is down (rank, in).
        """
        file: dict[str, Tensor] = {}
        for key, shape in shapes.items():
            if key.endswith(".weight") and (".attn1.to_" in key or ".attn2.to_" in key):
                rows, columns = shape
                for slot, part in enumerate(((rows, rank), (rank, columns))):
                    full = f"diffusion_model.{key}::lora::{slot}"
                    file[full] = self.weight(name + full, part)
        return file

    def diff_file(self, name: str, shapes: Shapes, extra_channels: int = 0) -> dict[str, Tensor]:
        """An SDXL offset file: every tensor but q, k and v; the first convolution takes more input channels."""
        file: dict[str, Tensor] = {}
        for key, shape in shapes.items():
            if ".to_q." in key or ".to_k." in key or ".to_v." in key:
                continue
            shape = list(shape)
            if key == "input_blocks.0.0.weight":
                shape[1] += extra_channels
            full = f"diffusion_model.{key}::diff::0"
            file[full] = self.weight(name + full, shape)
        return file

    def sharing_file(self, name: str, shapes: Shapes) -> dict[str, Tensor]:
        """An SD1.5 attention-sharing file by its `hookers.layers.N` keys; all but the low-rank tensors are halved."""
        file: dict[str, Tensor] = {}
        for key, shape in shapes.items():
            low_rank = "_lora." in key
            drawn = self.weight(f"{name}::lora::{key}" if low_rank else name + key, shape)
            file[key] = drawn if low_rank else drawn * 0.5
        return file
