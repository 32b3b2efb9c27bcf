"""What cut-outs are doubted for: a subject that goes over into its background shows through, and says so."""

import io
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


def logo(path: Path, quality: int | None = None) -> np.ndarray:
    """A blue tile with a white letter O in it and a white bar that runs out of it, on white; twice as fine, halved."""
    large = np.full((2 * SIDE, 2 * SIDE, 3), 255, np.uint8)
    cv2.rectangle(large, (80, 80), (320, 320), (32, 96, 192), -1, cv2.LINE_AA)
    cv2.circle(large, (170, 200), 50, (255, 255, 255), 24, cv2.LINE_AA)
    cv2.rectangle(large, (280, 190), (399, 210), (255, 255, 255), -1, cv2.LINE_AA)
    pixels = cv2.resize(large, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    Image.fromarray(pixels).save(path, quality=quality or 75)
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("translucent", [False, True])
def test_white_letters_on_white_stay_where_only_what_joins_the_border_goes(
    tmp_path: Path, suffix: str, translucent: bool
) -> None:
    path = tmp_path / f"logo{suffix}"
    given = logo(path, 92)
    [doubt] = run(CutOutTask(path)).warnings
    assert "lies within the subject" in doubt
    assert 'give background="border"' in doubt
    made = run(CutOutTask(path, joined=True, translucent=translucent))
    assert made.warnings == ()
    assert made.how.endswith("where it joins the border")
    rgba = np.asarray(Image.open(io.BytesIO(made.data)))
    letter = np.zeros((SIDE, SIDE), bool)
    letter[70:130, 55:115] = True
    letter &= given.min(axis=2) > (150 if translucent else 0)
    assert np.array_equal(rgba[letter][:, :3], given[letter])
    assert (rgba[letter][:, 3] == 255).all()
    assert (rgba[97:103, 150:, 3] < 5).all()  # the bar runs out of the tile
    assert (rgba[:36, :, 3] < 5).all()


def test_a_hole_is_one_unless_only_what_joins_the_border_is_to_go(tmp_path: Path) -> None:
    logo(tmp_path / "logo.png")
    whole, joined = (run(CutOutTask(tmp_path / "logo.png", joined=joined)) for joined in (False, True))
    clear = [np.asarray(Image.open(io.BytesIO(made.data)))[..., 3] == 0 for made in (whole, joined)]
    assert clear[0][100, 60]
    assert not clear[1][100, 60]
    assert (clear[0] >= clear[1]).all()


@pytest.mark.parametrize(("suffix", "quality"), [(".png", None), (".jpg", 85)])
def test_ripples_beside_an_edge_close_nothing_off(tmp_path: Path, suffix: str, quality: int | None) -> None:
    large = np.full((4 * SIDE, 4 * SIDE, 3), 255, np.uint8)
    cv2.circle(large, (400, 400), 240, (32, 96, 192), -1, cv2.LINE_AA)
    cv2.rectangle(large, (360, 320), (440, 480), (255, 255, 255), -1)
    picture = Image.fromarray(large).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    picture.save(tmp_path / f"logo{suffix}", quality=quality or 75)
    alphas = [
        np.asarray(Image.open(io.BytesIO(run(CutOutTask(tmp_path / f"logo{suffix}", joined=joined)).data)))[..., 3]
        for joined in (False, True)
    ]
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    assert np.array_equal(*(alpha[np.hypot(x, y) > 50] for alpha in alphas))
    assert (alphas[1][np.hypot(x, y) < 50] == 255).all()


@pytest.mark.parametrize("width", [1, 3])
def test_a_frame_that_was_taken_for_the_background_is_told_with_the_way_out(tmp_path: Path, width: int) -> None:
    pixels = np.full((300, 400, 3), 255, np.uint8)
    pixels[80:120, 60:90] = 30, 90, 200
    framed = cv2.copyMakeBorder(pixels, width, width, width, width, cv2.BORDER_CONSTANT, value=(128, 128, 128))
    [doubt] = doubts(framed, tmp_path)
    assert "all that was taken for background is a frame" in doubt
    assert f'x {-width}, y {-width} and canvas={{"size": "400x300"}}' in doubt
    [doubt] = doubts(np.full((30, 40, 3), 128, np.uint8) + np.arange(40, dtype=np.uint8)[None, :, None] % 2, tmp_path)
    assert "Nothing is left" in doubt


def test_a_picture_before_a_margin_of_its_own_width_is_no_frame(tmp_path: Path) -> None:
    pixels = np.full((300, 400, 3), 255, np.uint8)
    pixels[20:280, 20:380] = 30, 90, 200
    assert doubts(pixels, tmp_path) == ()


def test_a_soft_shadow_is_named_among_what_shows_through(tmp_path: Path) -> None:
    shade = np.zeros((SIDE, SIDE), np.float32)
    shade[60:170, 50:170] = 0.6
    shade = cv2.GaussianBlur(shade, (0, 0), 10)[..., None]
    pixels = (255 * (1 - shade)).repeat(3, axis=2).round().astype(np.uint8)
    pixels[40:140, 40:140] = 32, 96, 192
    [doubt] = doubts(pixels, tmp_path)
    assert "soft shadow set translucent" in doubt
    assert doubts(pixels, tmp_path, translucent=True) == ()


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
