"""Transparent latents as files: safetensors with one tensor and what decoding needs to know of it.

    data = latent_bytes(SavedLatent(latent, 512, 512, model.spec.id, "pocket", 7))      # a file's content
    read_latent(path).latent        # (4, 64, 64), float32, in the sampler's (scaled) space

What the header says is read in `hub/latents.py`.
"""

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from torch import Tensor

from layerdiffuse_mcp.engine.weights.tensor_file import TensorFile
from layerdiffuse_mcp.errors import Cancelled, ImageError, LayerDiffuseError, LayerFileError
from layerdiffuse_mcp.hub.latents import latent_header

KEY = "latent"
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class SavedLatent:
    """A latent (C, h, w), float32, in the sampler's space, and the picture it stands for."""

    latent: Tensor
    width: int
    height: int
    family: str | None
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
        header = latent_header(file.shapes, file.metadata, path.name)
        file.require_finite(iter([header.key]))
        latent = file.read(header.key).float().view(header.shape)
    except LayerDiffuseError as error:
        if isinstance(error, ImageError | Cancelled):
            raise
        raise ImageError(f"The latent cannot be read: {error}") from None
    return SavedLatent(latent, header.width, header.height, header.family, header.model, header.seed)
