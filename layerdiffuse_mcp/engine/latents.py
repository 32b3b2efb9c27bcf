"""Transparent latents as files: safetensors with one tensor and what decoding needs to know of it.

    data = latent_bytes(SavedLatent(latent, 512, 512, "sd15", "pocket", 7))      # a file's content
    read_latent(path).latent        # (4, 64, 64), float32, in the sampler's (scaled) space

Files of other tools are read too, when they hold one tensor (4, h, w) or (1, 4, h, w).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import safetensors.torch
from torch import Tensor

from layerdiffuse_mcp.engine.tensorfile import TensorFile
from layerdiffuse_mcp.errors import Cancelled, ImageError, LayerDiffuseError, LayerFileError
from layerdiffuse_mcp.images.alpha import Bytes
from layerdiffuse_mcp.methods import FAMILIES, Family
from layerdiffuse_mcp.requests import MAX_SEED, MAX_SIZE

KEY = "latent"
SUFFIX = ".safetensors"
LATENT_FACTOR = 8
NUMBER = re.compile(r"[0-9]{1,10}")
MAX_SIDE = MAX_SIZE // LATENT_FACTOR
"""What is decoded is no larger than what can be drawn."""


@dataclass(frozen=True)
class SavedLatent:
    """A latent (4, h, w), float32, in the sampler's space, and the picture it stands for."""

    latent: Tensor
    width: int
    height: int
    family: Family | None
    model: str | None
    seed: int


def latent_bytes(saved: SavedLatent) -> bytes:
    """A latent file's content."""
    facts = {"width": saved.width, "height": saved.height, "family": saved.family, "model": saved.model}
    metadata = {name: str(value) for name, value in {**facts, "seed": saved.seed}.items() if value is not None}
    return safetensors.torch.save({KEY: saved.latent.contiguous()}, metadata)


def read_latent(path: Path) -> SavedLatent:
    """Read a latent file: its header first, then the one tensor, if that is a latent's.

    Raises:
        ImageError: not a safetensors file, or it does not hold one latent of finite numbers.
    """
    try:
        file = TensorFile(path, LayerFileError)
        name, shape = _only_latent(file.shapes, path.name)
        file.require_finite(iter([name]))
        latent = file.read(name).float().view(shape)
    except LayerDiffuseError as error:
        if isinstance(error, ImageError | Cancelled):
            raise
        raise ImageError(f"{path.name} cannot be read as a latent. {error}") from None
    height, width = shape[1] * LATENT_FACTOR, shape[2] * LATENT_FACTOR
    facts = file.metadata
    family: Family | None = next((known for known in FAMILIES if known == facts.get("family")), None)
    return SavedLatent(
        latent,
        _number(facts.get("width"), width, range(1, width + 1)),
        _number(facts.get("height"), height, range(1, height + 1)),
        family,
        facts.get("model"),
        _number(facts.get("seed"), 0, range(MAX_SEED + 1)),
    )


def _only_latent(shapes: Mapping[str, tuple[int, ...]], path: str) -> tuple[str, tuple[int, int, int]]:
    """The name of the latent in a file of tensors of these shapes, and its shape without a batch of one."""
    pictures = {name: shape for name, shape in shapes.items() if len(shape) in (3, 4)}
    match [*pictures.items()]:
        case [(name, (4, height, width) | (1, 4, height, width))] if min(height, width) >= 1:
            if max(height, width) <= MAX_SIDE:
                return name, (4, height, width)
            raise ImageError(
                f"{path} is a latent of {width}x{height}, for a picture of {width * LATENT_FACTOR}x"
                f"{height * LATENT_FACTOR}; at most {MAX_SIDE}x{MAX_SIDE} is decoded. Give a smaller one."
            )
        case _:
            found = ", ".join(f"{name[:40]} {shape}" for name, shape in islice(shapes.items(), 3)) or "none"
            raise ImageError(
                f"{path} holds no transparent latent: one tensor of shape (4, height/8, width/8) is wanted, found "
                f"{found}. Give a file written by save_latent or encode_transparent_image."
            )


def padded(rgba: Bytes) -> Bytes:
    """A picture continued at the right and the bottom by transparent pixels, to sides that are multiples of 8."""
    height, width = rgba.shape[:2]
    return np.pad(rgba, ((0, -height % LATENT_FACTOR), (0, -width % LATENT_FACTOR), (0, 0)))


def _number(text: str | None, default: int, allowed: range) -> int:
    """The number that a file's metadata says, where that is one that is allowed."""
    said = int(text) if text is not None and NUMBER.fullmatch(text) else default
    return said if said in allowed else default
