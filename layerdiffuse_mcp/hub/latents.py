"""What a saved latent's header says: its shape, the picture that it stands for, what made it. No torch, no tensor read.

    header = read_latent_header(path)
    header.shape, header.width, header.height, header.family      # (4, 64, 64), 512, 512, None where it is not said

Files of other tools are read too, when they hold one tensor (C, h, w) or (1, C, h, w).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from layerdiffuse_mcp.api.fields import MAX_SEED, MAX_SIZE
from layerdiffuse_mcp.errors import ImageError, LayerFileError, ModelError
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.families.spec import LatentFormat, Shapes
from layerdiffuse_mcp.hub.headers import read_header

NUMBER = re.compile(r"[0-9]{1,10}")
FORMATS: tuple[LatentFormat, ...] = tuple(card.latent for card in FAMILIES.values() if card.encodes_alpha)
"""Of the latents that can be decoded."""


@dataclass(frozen=True)
class LatentHeader:
    """key: of the tensor in the file. shape: (C, h, w), without a batch of one. width, height: of the picture."""

    key: str
    shape: tuple[int, int, int]
    width: int
    height: int
    family: str | None
    model: str | None
    seed: int


def read_latent_header(path: Path) -> LatentHeader:
    """Read and check the header of a latent file.

    Raises:
        ImageError: not a safetensors file, or it does not hold one latent of a size that is decoded.
    """
    try:
        header = read_header(path, LayerFileError)
    except ModelError as error:
        raise ImageError(f"The latent cannot be read: {error}") from None
    return latent_header(header.shapes, header.metadata, path.name)


def latent_header(shapes: Shapes, metadata: Mapping[str, str], name: str) -> LatentHeader:
    """What tensors of these shapes and these metadata say; raises ImageError, which calls the file `name`."""
    family = next((known for known in FAMILIES if known == metadata.get("family")), None)
    key, shape, downscale = _only_latent(shapes, name, FAMILIES[family].latent if family else None)
    height, width = shape[1] * downscale, shape[2] * downscale
    return LatentHeader(
        key,
        shape,
        _number(metadata.get("width"), width, range(1, width + 1)),
        _number(metadata.get("height"), height, range(1, height + 1)),
        family,
        metadata.get("model"),
        _number(metadata.get("seed"), 0, range(MAX_SEED + 1)),
    )


def _only_latent(shapes: Shapes, path: str, form: LatentFormat | None) -> tuple[str, tuple[int, int, int], int]:
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
    said = int(text) if text is not None and NUMBER.fullmatch(text) else default
    return said if said in allowed else default
