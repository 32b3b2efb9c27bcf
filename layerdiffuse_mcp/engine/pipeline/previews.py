"""What is being drawn, seen while it is drawn: a small PNG of the denoised estimate, replaced as it gets clearer.

    with previews(settings, model.latent) as show:
        show(denoised, frames)      # the file's path, or None as long as there is none

A latent's channels become colours by one linear map, which costs next to nothing. The file lies in the output
folder under a hidden name and goes with the `with` block.
"""

import io
import logging
import secrets
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from layerdiffuse_mcp.families.spec import LatentFormat
from layerdiffuse_mcp.images.alpha import Bytes
from layerdiffuse_mcp.images.files import replace_atomically
from layerdiffuse_mcp.settings import Settings

SHARE = 0.01
"""Of the time since drawing began: what previews may take. The first comes at once, whatever it takes."""
SMALL, LARGE, ENLARGED = 256, 512, 8
"""Sides in pixels: small pictures are enlarged up to the one, at most so many times, large ones shrunk to the other."""
LEFT_BEHIND = 24 * 3600.0
"""Seconds after which the preview of a killed worker is removed after the next run."""

Show = Callable[[Tensor, int], Path | None]
"""`show(denoised, frames)`: denoised (B, C, h, w), rows (image, frame), as the sampler has it."""

logger = logging.getLogger(__name__)


@contextmanager
def previews(settings: Settings, latent: LatentFormat) -> Generator[Show]:
    """Previews of one run, if the settings ask for them; `show` does nothing otherwise. Never raises of itself."""
    if not settings.previews:
        yield lambda _denoised, _frames: None
        return
    shown = _Preview(settings.output, torch.tensor(latent.rgb_factors))
    try:
        yield shown.show
    finally:
        shown.remove()


def latent_pictures(latents: Tensor, latent_rgb: Tensor) -> Bytes:
    """Sampled latents (B, C, h, w) as they would about look, (B, h, w, 3), uint8; latent_rgb of a `LatentFormat`."""
    colours = latents.movedim(1, -1).float().cpu() @ latent_rgb[:-1] + latent_rgb[-1]
    return ((colours / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8).numpy()


def sheet(pictures: Bytes, columns: int) -> Bytes:
    """Pictures (B, h, w, 3), uint8, in rows of `columns`, at a size to look at: at most `LARGE` px a side."""
    count, height, width = pictures.shape[:3]
    rows = -(-count // columns)
    filled = np.concatenate([pictures, np.zeros((rows * columns - count, height, width, 3), np.uint8)])
    grid = filled.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    side = max(grid.shape[:2])
    scale = min(LARGE / side, max(1, min(ENLARGED, SMALL // side)))
    size = (max(1, int(grid.shape[1] * scale)), max(1, int(grid.shape[0] * scale)))
    return cv2.resize(grid, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR).astype(np.uint8)


class _Preview:
    """One run's file, and when it is due again: a preview that takes 4 ms comes at most every 0.4 s."""

    def __init__(self, folder: Path, latent_rgb: Tensor) -> None:
        self._path = folder / f".preview-{secrets.token_hex(6)}.png"
        self._latent_rgb = latent_rgb
        self._begun = time.monotonic()
        self._spent = self._last = 0.0
        self._written = self._failed = False

    def show(self, denoised: Tensor, frames: int) -> Path | None:
        """Write the preview if it is due; the file's path once it is there."""
        if not self._failed and self._spent + self._last <= SHARE * (time.monotonic() - self._begun):
            latents = denoised.cpu()  # a GPU is still busy with the step, which is no cost of the preview's
            begun = time.monotonic()
            self._write(latents, frames)
            self._last = time.monotonic() - begun
            self._spent += self._last
        return self._path if self._written else None

    def remove(self) -> None:
        """Remove the file, and those that killed workers left behind."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
            for other in self._path.parent.glob(".preview-*.png"):
                if time.time() - other.stat().st_mtime > LEFT_BEHIND:
                    other.unlink(missing_ok=True)

    def _write(self, latents: Tensor, frames: int) -> None:
        columns = frames if frames > 1 else int(np.ceil(np.sqrt(len(latents))))
        buffer = io.BytesIO()
        picture = Image.fromarray(sheet(latent_pictures(latents, self._latent_rgb), columns))
        picture.save(buffer, "PNG", compress_level=1)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_atomically(self._path, buffer.getvalue())
            self._written = True
        except OSError as error:  # a full disk is for the picture itself to report
            logger.warning("no previews: %s cannot be written: %s", self._path, error)
            self._failed = True
