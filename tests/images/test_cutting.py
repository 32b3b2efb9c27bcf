"""What cut-outs are doubted for: a subject that goes over into its background shows through, and says so."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.errors import ImageError
from layerdiffuse_mcp.images.tasks import Colour, CutOutTask
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


@pytest.mark.parametrize("background", [None, (1.0, 1.0, 1.0)])
def test_what_is_transparent_already_is_refused(tmp_path: Path, background: Colour | None) -> None:
    rgba = np.dstack([on((0, 0, 0)), np.full((SIDE, SIDE), 255, np.uint8)])
    rgba[:, :50, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "ball.png")
    with pytest.raises(ImageError, match=r"ball\.png is transparent already, in 25% .*compose_layers with background"):
        run(CutOutTask(tmp_path / "ball.png", background))


def test_an_alpha_channel_that_hides_nothing_is_no_transparency(tmp_path: Path) -> None:
    assert doubts(np.dstack([on((0, 177, 64)), np.full((SIDE, SIDE), 254, np.uint8)]), tmp_path) == ()


def of_two(path: Path, first: np.ndarray, second: np.ndarray, suffix: str = ".png") -> tuple[str, ...]:
    for name, pixels in {"first": first, "second": second}.items():
        Image.fromarray(pixels).save(path / (name + suffix))
    return run(CutOutTask(path / f"first{suffix}", second=path / f"second{suffix}")).warnings


@pytest.mark.parametrize("pixels", [2, 4])
def test_a_subject_that_moved_between_two_pictures_is_doubted(tmp_path: Path, pixels: int) -> None:
    moved = np.roll(on((255, 255, 255), shaded=False), pixels, axis=1)
    [doubt] = of_two(tmp_path, on((0, 0, 0), shaded=False), moved)
    assert "The two pictures contradict each other" in doubt


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_two_pictures_of_one_subject_are_not_doubted(tmp_path: Path, suffix: str) -> None:
    assert of_two(tmp_path, on((0, 0, 0)), on((255, 255, 255)), suffix) == ()
    assert of_two(tmp_path, on((0, 177, 64)), on((40, 60, 220)), suffix) == ()
