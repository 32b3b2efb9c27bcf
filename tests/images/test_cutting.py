"""What cut-outs are doubted for: a subject that goes over into its background shows through, and says so."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.images.tasks import CutOutTask
from layerdiffuse_mcp.images.work import run

SIDE, RADIUS = 200, 70
BROWN = (200, 120, 60)


def on(background: tuple[int, int, int], *, shaded: bool = True, blur: float = 0.0, light: float = -1.0) -> np.ndarray:
    """A brown ball before a colour, lit from the left, so that its right side is black."""
    y, x = (np.mgrid[0:SIDE, 0:SIDE] - SIDE / 2) / RADIUS
    distance = np.hypot(x, y)
    height = np.sqrt(np.clip(1 - distance**2, 0, 1))
    shade = np.clip((light * x + 0.4 * height) / np.hypot(light, 0.4), 0, 1)[..., None] if shaded else 1.0
    cover = np.clip((1 - distance) * RADIUS + 0.5, 0, 1).astype(np.float32)
    cover = cv2.GaussianBlur(cover, (0, 0), blur)[..., None] if blur else cover[..., None]
    return (np.array(BROWN) * shade * cover + np.array(background) * (1 - cover)).round().astype(np.uint8)


def doubts(pixels: np.ndarray, path: Path, *, translucent: bool = False) -> tuple[str, ...]:
    Image.fromarray(pixels).save(path / "ball.png")
    return run(CutOutTask(path / "ball.png", translucent=translucent)).warnings


def test_a_dark_side_on_black_is_said_to_show_through(tmp_path: Path) -> None:
    [doubt] = doubts(on((0, 0, 0)), tmp_path)
    assert "shows through far from its edge" in doubt
    assert "another colour" in doubt


@pytest.mark.parametrize("pixels", [
    on((0, 177, 64)), on((255, 255, 255)), on((0, 0, 0), shaded=False), on((0, 177, 64), shaded=False, blur=3),
], ids=["on green", "on white", "lit on black", "a wide soft edge"])  # fmt: skip
def test_a_soft_edge_is_not_doubted(tmp_path: Path, pixels: np.ndarray) -> None:
    assert doubts(pixels, tmp_path) == ()


def test_what_is_meant_to_show_through_is_not_doubted(tmp_path: Path) -> None:
    assert doubts(on((0, 0, 0)), tmp_path, translucent=True) == ()
