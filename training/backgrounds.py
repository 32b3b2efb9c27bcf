"""Backgrounds drawn by our own code, each with the words for it: what ordinary pictures put behind their subject.

`draw(kind, rng)` gives float32 (S, S, 3) in 0..1. Everything comes from the given numpy generator, so a seed remakes
it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import cv2
import numpy as np

Rng = np.random.Generator
SIZE = 128
GREY = 127 / 255
NAMED = {
    "red": (0.85, 0.15, 0.15),
    "orange": (0.95, 0.55, 0.15),
    "yellow": (0.97, 0.85, 0.25),
    "green": (0.25, 0.65, 0.3),
    "blue": (0.2, 0.4, 0.85),
    "purple": (0.5, 0.25, 0.7),
    "pink": (0.97, 0.65, 0.78),
    "brown": (0.45, 0.3, 0.2),
    "black": (0.06, 0.06, 0.07),
    "white": (0.97, 0.97, 0.97),
}


def _smooth(rng: Rng, cells: int) -> np.ndarray:
    """Smooth noise (S, S) in 0..1 with about `cells` bumps a side."""
    coarse = rng.random((cells + 1, cells + 1)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC), 0, 1)


def _fractal(rng: Rng) -> np.ndarray:
    return sum(_smooth(rng, 4 * 2**k) * 0.5 ** (k + 1) for k in range(4)) / 0.9375


def _mix(low: np.ndarray | tuple, high: np.ndarray | tuple, share: np.ndarray) -> np.ndarray:
    share = share[..., None]
    return np.asarray(low, np.float32) * (1 - share) + np.asarray(high, np.float32) * share


def _rows() -> np.ndarray:
    return np.repeat(np.linspace(0, 1, SIZE, dtype=np.float32)[:, None], SIZE, 1)


def _jitter(colour: tuple, rng: Rng, amount: float = 0.05) -> np.ndarray:
    return np.clip(np.asarray(colour, np.float32) + rng.normal(0, amount, 3).astype(np.float32), 0, 1)


def plain(colour: tuple) -> Callable[[Rng], np.ndarray]:
    return lambda rng: np.broadcast_to(_jitter(colour, rng, 0.02), (SIZE, SIZE, 3)).copy()


def grey(rng: Rng) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), GREY, np.float32)


def gradient(rng: Rng) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j].astype(np.float32)
    share = np.clip((np.cos(angle) * x + np.sin(angle) * y) / 2 + 0.5, 0, 1)
    return _mix(rng.random(3), rng.random(3), share.astype(np.float32))


def sky(rng: Rng) -> np.ndarray:
    blue = _mix(_jitter((0.25, 0.5, 0.9), rng), _jitter((0.75, 0.88, 0.98), rng), _rows())
    clouds = np.clip((_fractal(rng) - rng.uniform(0.5, 0.62)) * 5, 0, 0.9)
    return _mix(blue, (1.0, 1.0, 1.0), clouds)


def sunset(rng: Rng) -> np.ndarray:
    high = _mix(_jitter((0.3, 0.2, 0.5), rng), _jitter((0.95, 0.5, 0.35), rng), np.clip(_rows() * 1.6, 0, 1))
    return _mix(high, _jitter((1.0, 0.8, 0.4), rng), np.clip(_rows() * 2 - 1.1, 0, 1))


def night(rng: Rng) -> np.ndarray:
    image = _mix(_jitter((0.02, 0.03, 0.12), rng, 0.015), _jitter((0.1, 0.12, 0.3), rng, 0.03), _rows())
    for _ in range(rng.integers(30, 70)):
        x, y = rng.integers(1, SIZE - 1, 2)
        light = rng.uniform(0.5, 1)
        image[y, x] = light
        if rng.random() < 0.3:
            image[y - 1 : y + 2, x] = image[y, x - 1 : x + 2] = light
    return np.clip(image, 0, 1)


def meadow(rng: Rng) -> np.ndarray:
    horizon = rng.uniform(0.4, 0.6) + 0.05 * np.sin(np.linspace(0, rng.uniform(3, 6), SIZE) + rng.uniform(0, 6))
    ground = np.clip((_rows() - horizon[None].astype(np.float32)) * SIZE / 2 + 0.5, 0, 1)
    blades = cv2.GaussianBlur(rng.random((SIZE, SIZE)).astype(np.float32), (1, 9), 0.5, sigmaY=2)
    grass = _mix(_jitter((0.2, 0.5, 0.15), rng), _jitter((0.5, 0.75, 0.3), rng), np.clip((blades - 0.3) * 2.5, 0, 1))
    return np.where(ground[..., None] > 0.5, grass, sky(rng))


def beach(rng: Rng) -> np.ndarray:
    rows = _rows()
    sand = _mix(_jitter((0.93, 0.83, 0.6), rng, 0.03), _jitter((0.8, 0.68, 0.45), rng, 0.03), _smooth(rng, 32))
    sea = _mix(_jitter((0.1, 0.45, 0.75), rng), _jitter((0.3, 0.75, 0.8), rng), np.clip(rows * 3 - 1, 0, 1))
    shore, horizon = rng.uniform(0.62, 0.75), rng.uniform(0.35, 0.5)
    return np.where((rows > shore)[..., None], sand, np.where((rows > horizon)[..., None], sea, sky(rng)))


def water(rng: Rng) -> np.ndarray:
    waves = np.sin(_rows() * rng.uniform(40, 70) + 6 * _smooth(rng, 6)) * 0.5 + 0.5
    return _mix(_jitter((0.08, 0.35, 0.6), rng), _jitter((0.3, 0.65, 0.85), rng), waves * 0.7 + 0.3 * _fractal(rng))


def mountains(rng: Rng) -> np.ndarray:
    image, rows = sky(rng), _rows()
    for depth in range(3):
        line = np.interp(np.arange(SIZE), np.linspace(0, SIZE, 9), rng.uniform(0.3, 0.55, 9) + depth * 0.15)
        colour = _jitter((0.5 - 0.12 * depth, 0.55 - 0.1 * depth, 0.65 - 0.14 * depth), rng, 0.03)
        image = np.where((rows > line[None])[..., None], colour, image)
    return image


def brick(rng: Rng) -> np.ndarray:
    height, width = int(rng.integers(10, 16)), int(rng.integers(22, 32))
    image = np.empty((SIZE, SIZE, 3), np.float32)
    image[:] = _jitter((0.78, 0.74, 0.7), rng, 0.03)
    base = _jitter((0.62, 0.27, 0.2), rng)
    for row in range(SIZE // height + 1):
        for column in range(-1, SIZE // width + 1):
            x = column * width + (row % 2) * width // 2
            cv2.rectangle(
                image,
                (x + 1, row * height + 1),
                (x + width - 2, row * height + height - 2),
                _jitter(tuple(base), rng, 0.03).tolist(),
                -1,
            )
    return np.clip(image + rng.normal(0, 0.015, image.shape).astype(np.float32), 0, 1)


def wood(rng: Rng) -> np.ndarray:
    grain = np.sin(_rows() * rng.uniform(60, 110) + 10 * _smooth(rng, 3)) * 0.5 + 0.5
    image = _mix(
        _jitter((0.45, 0.28, 0.15), rng, 0.04),
        _jitter((0.68, 0.46, 0.27), rng, 0.04),
        grain * 0.5 + _smooth(rng, 5) * 0.5,
    )
    for y in range(int(rng.integers(8, 32)), SIZE, 32):
        image[y : y + 2] *= 0.6
    return image


def snow(rng: Rng) -> np.ndarray:
    image = _mix(_jitter((0.7, 0.8, 0.92), rng, 0.03), (0.96, 0.97, 1.0), np.clip(_rows() * 1.5 - 0.2, 0, 1))
    for _ in range(60):
        x, y = rng.integers(0, SIZE, 2).tolist()
        cv2.circle(image, (x, y), int(rng.integers(1, 3)), (1.0, 1.0, 1.0), -1, cv2.LINE_AA)
    return np.clip(image, 0, 1)


def bokeh(rng: Rng) -> np.ndarray:
    image = _mix(rng.random(3) * 0.4, rng.random(3) * 0.6, _smooth(rng, 2))
    for _ in range(rng.integers(10, 25)):
        layer = np.zeros((SIZE, SIZE), np.float32)
        x, y = rng.integers(0, SIZE, 2).tolist()
        cv2.circle(layer, (x, y), int(rng.integers(5, 18)), 1.0, -1, cv2.LINE_AA)
        image = _mix(image, rng.random(3) * 0.5 + 0.5, cv2.GaussianBlur(layer, (0, 0), 1.2) * rng.uniform(0.15, 0.5))
    return np.clip(image, 0, 1)


def room(rng: Rng) -> np.ndarray:
    corner = rng.uniform(0.6, 0.75)
    wall = _mix(_jitter((0.85, 0.8, 0.72), rng, 0.08), _jitter((0.7, 0.66, 0.62), rng, 0.05), _rows())
    floor = _mix(_jitter((0.55, 0.4, 0.3), rng), _jitter((0.4, 0.28, 0.2), rng), _rows())
    return np.where((_rows() > corner)[..., None], floor, wall)


# words after "a cat": drawer; an empty string means that the caption does not speak of it
KINDS: dict[str, Callable[[Rng], np.ndarray]] = {
    "on a grey background": grey,
    "on a gradient background": gradient,
    "in the sky": sky,
    "at sunset": sunset,
    "at night with stars": night,
    "on a meadow": meadow,
    "on a beach": beach,
    "in water": water,
    "in the mountains": mountains,
    "in front of a brick wall": brick,
    "on a wooden table": wood,
    "in the snow": snow,
    "in front of bokeh lights": bokeh,
    "in a room": room,
    **{
        f"on a {'n ' if name[0] in 'aeiou' else ' '}{name} background".replace("a n ", "an ").replace(
            "a  ", "a "
        ): plain(colour)
        for name, colour in NAMED.items()
    },
}


def draw(kind: str, rng: Rng) -> np.ndarray:
    """A background of this kind, float32 (128, 128, 3) in 0..1."""
    return KINDS[kind](rng).astype(np.float32)


def bank(count: int, seed: int, grey_share: float = 0.0) -> tuple[np.ndarray, list[str]]:
    """`count` backgrounds as uint8 (count, 128, 128, 3) and their kinds; `grey_share` of them the plain mid-grey."""
    rng = np.random.default_rng(seed)
    names = list(KINDS)
    images, kinds = [], []
    for _ in range(count):
        kind = names[0] if rng.random() < grey_share else names[1 + int(rng.integers(len(names) - 1))]
        images.append((draw(kind, rng) * 255).round().astype(np.uint8))
        kinds.append(kind)
    return np.stack(images), kinds


def scenes() -> list[str]:
    """What the kinds show, without the words that join it to a subject: "meadow" of "on a meadow"."""
    return [re.sub(r"^(in front of|on|in|at) ((the|an?) )?", "", kind) for kind in KINDS]
