"""Draws the icon: a disc that fades on a checkerboard. `python packaging/icon.py` writes packaging/mcpb/icon.png."""

from pathlib import Path

import numpy as np
from PIL import Image

SIDE, ROUND, CELL = 512, 96, 64
"""Pixels: of the icon, the radius of its corners, of the checkerboard."""
DISC = np.array([11, 114, 133], np.float32)
RADIUS = 176.0


def icon() -> np.ndarray:
    """(512, 512, 4) uint8, straight alpha."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32) + 0.5
    board = np.where((x // CELL + y // CELL) % 2 == 0, 255.0, 214.0)[..., None].repeat(3, axis=2)
    covered = _inside(RADIUS - np.hypot(x - SIDE / 2, y - SIDE / 2)) * np.clip((SIDE - 96 - x) / (SIDE - 224), 0, 1)
    colour = board + covered[..., None] * (DISC - board)
    corner = np.hypot(*(np.maximum(abs(axis - SIDE / 2) - SIDE / 2 + ROUND, 0) for axis in (x, y)))
    alpha = 255 * _inside(ROUND - corner)
    return np.dstack([colour, alpha]).round().astype(np.uint8)


def _inside(distance: np.ndarray) -> np.ndarray:
    """How much of a pixel lies inside, by its distance from the edge."""
    return np.clip(distance + 0.5, 0, 1)


if __name__ == "__main__":
    Image.fromarray(icon()).save(Path(__file__).parent / "mcpb/icon.png", optimize=True)
