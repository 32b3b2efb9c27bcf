"""Transparent latents as files: safetensors with one tensor and what decoding needs to know of it.

    data = latent_bytes(SavedLatent(latent, 512, 512, "sd15", "pocket", 7))      # a file's content
    read_latent(path).latent        # (4, 64, 64), float32, in the sampler's (scaled) space

Files of other tools are read too, when they hold one tensor (4, h, w) or (1, 4, h, w).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
from torch import Tensor

from layerdiffuse_mcp.engine.tensorfile import TensorFile
from layerdiffuse_mcp.errors import ImageError, LayerDiffuseError, LayerFileError
from layerdiffuse_mcp.images.alpha import Bytes
from layerdiffuse_mcp.methods import FAMILIES, Family

KEY = "latent"
SUFFIX = ".safetensors"
LATENT_FACTOR = 8
MAX_SIDE = 512


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
    """Read a latent file.

    Raises:
        ImageError: not a safetensors file, or it does not hold one latent of finite numbers.
    """
    try:
        file = TensorFile(path, LayerFileError)
        tensors = {name: tensor for name, tensor in file.items() if tensor.ndim in (3, 4)}
        file.require_finite()
    except LayerDiffuseError as error:
        raise ImageError(f"{path.name} cannot be read as a latent. {error}") from None
    latent = next(iter(tensors.values())).float() if len(tensors) == 1 else None
    if latent is not None and latent.ndim == 4 and latent.shape[0] == 1:
        latent = latent[0]
    if latent is None or latent.ndim != 3 or latent.shape[0] != 4 or not 1 <= min(latent.shape[1:]) <= MAX_SIDE:
        found = ", ".join(f"{name} {tuple(shape)}" for name, shape in list(file.shapes.items())[:3])
        raise ImageError(
            f"{path.name} holds no transparent latent: one tensor of shape (4, height/8, width/8) is wanted, "
            f"found {found}. Give a file written by save_latent or encode_transparent_image."
        )
    height, width = latent.shape[1] * LATENT_FACTOR, latent.shape[2] * LATENT_FACTOR
    facts = file.metadata
    family: Family | None = next((known for known in FAMILIES if known == facts.get("family")), None)
    return SavedLatent(
        latent.clone(),
        _number(facts.get("width"), width),
        _number(facts.get("height"), height),
        family,
        facts.get("model"),
        _number(facts.get("seed"), 0),
    )


def padded(rgba: Bytes) -> Bytes:
    """A picture continued at the right and the bottom by transparent pixels, to sides that are multiples of 8."""
    height, width = rgba.shape[:2]
    return np.pad(rgba, ((0, -height % LATENT_FACTOR), (0, -width % LATENT_FACTOR), (0, 0)))


def _number(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdigit() and int(text) <= max(default, 2**32) else default
