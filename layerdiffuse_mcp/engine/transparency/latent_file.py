"""Transparent latents as files: safetensors with one tensor and what decoding needs to know of it.

    data = latent_bytes(SavedLatent(latent, 512, 512, "sd15", "pocket", 7))      # a file's content
    read_latent(path).latent        # (4, 64, 64), float32, in the sampler's (scaled) space

Files of other tools are read too, when they hold one tensor (C, h, w) or (1, C, h, w).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import safetensors.torch
from torch import Tensor

from layerdiffuse_mcp.api.fields import MAX_SEED, MAX_SIZE
from layerdiffuse_mcp.engine.weights.tensor_file import TensorFile
from layerdiffuse_mcp.errors import Cancelled, ImageError, LayerDiffuseError, LayerFileError
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.families.spec import LatentFormat

KEY = "latent"
SUFFIX = ".safetensors"
NUMBER = re.compile(r"[0-9]{1,10}")
FORMATS: tuple[LatentFormat, ...] = tuple(card.latent for card in FAMILIES.values() if card.codec)
"""Of the latents that can be decoded."""


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
        facts = file.metadata
        family = next((name for name in FAMILIES if name == facts.get("family")), None)
        name, shape, downscale = _only_latent(file.shapes, path.name, FAMILIES[family].latent if family else None)
        file.require_finite(iter([name]))
        latent = file.read(name).float().view(shape)
    except LayerDiffuseError as error:
        if isinstance(error, ImageError | Cancelled):
            raise
        raise ImageError(f"{path.name} cannot be read as a latent. {error}") from None
    height, width = shape[1] * downscale, shape[2] * downscale
    return SavedLatent(
        latent,
        _number(facts.get("width"), width, range(1, width + 1)),
        _number(facts.get("height"), height, range(1, height + 1)),
        family,
        facts.get("model"),
        _number(facts.get("seed"), 0, range(MAX_SEED + 1)),
    )


def _only_latent(
    shapes: Mapping[str, tuple[int, ...]], path: str, form: LatentFormat | None
) -> tuple[str, tuple[int, int, int], int]:
    """The name of the latent in a file of tensors of these shapes, its shape without a batch of one, its downscale.

    form: what the file says it is of; one that says nothing is of any format with as many channels.
    """
    pictures = {name: shape for name, shape in shapes.items() if len(shape) in (3, 4)}
    forms = {one.channels: one for one in ([form] if form else reversed(FORMATS))}
    match [*pictures.items()]:
        case [(name, (channels, height, width) | (1, channels, height, width))] if (
            channels in forms and min(height, width) >= 1
        ):
            downscale = forms[channels].downscale
            most = MAX_SIZE // downscale  # what is decoded is no larger than what can be drawn
            if max(height, width) <= most:
                return name, (channels, height, width), downscale
            raise ImageError(
                f"{path} is a latent of {width}x{height}, for a picture of {width * downscale}x{height * downscale}; "
                f"at most {most}x{most} is decoded. Give a smaller one."
            )
        case _:
            found = ", ".join(f"{name[:40]} {shape}" for name, shape in islice(shapes.items(), 3)) or "none"
            wanted = " or ".join(f"({f.channels}, height/{f.downscale}, width/{f.downscale})" for f in forms.values())
            raise ImageError(
                f"{path} holds no transparent latent: one tensor of shape {wanted} is wanted, found "
                f"{found}. Give a file written by save_latent or encode_transparent_image."
            )


def _number(text: str | None, default: int, allowed: range) -> int:
    """The number that a file's metadata says, where that is one that is allowed."""
    value = int(text) if text is not None and NUMBER.fullmatch(text) else default
    return value if value in allowed else default
