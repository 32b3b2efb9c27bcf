"""Twenty cut-outs whose alpha and colour are known, to be laid on backgrounds and cut out again. Seeded, no files.

for subject in subjects():
    picture = subject.on((1, 1, 1))         # (H, W, 3), uint8, as a camera or a renderer would have it
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SIDE = 160
GREEN, WHITE, BLACK, BLUE = (0.1, 0.7, 0.25), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.15, 0.3, 0.8)

Floats = np.ndarray


@dataclass(frozen=True)
class Subject:
    """A picture with its true alpha (H, W) and colour (H, W, 3), 0 to 1; `translucent` where it is so inside too."""

    name: str
    alpha: Floats
    colour: Floats
    translucent: bool

    def on(self, background: Floats | tuple[float, ...]) -> Floats:
        """It before a background, 8 bits a channel."""
        alpha = self.alpha[..., None]
        return np.rint(255 * (self.colour * alpha + np.asarray(background) * (1 - alpha))).astype(np.uint8)


@functools.cache
def subjects() -> tuple[Subject, ...]:
    """Discs with soft edges, shapes of several colours, hair, glass with a solid rim, and smoke: four of each."""
    return tuple(_made())


def _made() -> Iterator[Subject]:
    for seed in range(4):
        random = np.random.default_rng(seed)
        tones = [_tone(random) for _ in range(3)]
        yield Subject(f"disc {seed}", _disc(48, (3, 6, 12, 20)[seed]), _flat(tones[0]), False)
        yield Subject(f"gradient {seed}", _disc(50, 4), _gradient(tones[0], tones[1]), False)
        yield Subject(f"hair {seed}", _hair(random), _flat(tones[0]), False)
        yield Subject(f"glass {seed}", _glass((0.25, 0.4, 0.55, 0.7)[seed]), _flat(tones[0]), True)
        yield Subject(f"smoke {seed}", _smoke(random), _flat(tones[0]), True)


def scenery(seed: int) -> Floats:
    """A background that is a picture: soft hills of colour with fine grain, (H, W, 3), 0 to 1."""
    random = np.random.default_rng(100 + seed)
    coarse = np.kron(random.random((8, 8, 3)), np.ones((SIDE // 8, SIDE // 8, 1)))
    rows, columns = _grid()
    waves = np.stack([np.sin(rows / 9 + shift) * np.cos(columns / (7 + shift)) for shift in range(3)], axis=-1)
    return np.clip(0.5 + 0.35 * (coarse - 0.5) + 0.2 * waves + random.normal(0, 0.03, (SIDE, SIDE, 3)), 0, 1)


def _tone(random: np.random.Generator) -> Floats:
    """A colour that neither of the backgrounds is near."""
    while True:
        tone = random.random(3)
        if all(np.abs(tone - ground).max() > 0.35 for ground in (GREEN, WHITE, BLACK, BLUE)):
            return tone


def _grid() -> tuple[Floats, Floats]:
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(float)
    return rows, columns


def _from_centre() -> Floats:
    rows, columns = _grid()
    return np.hypot(rows - SIDE / 2, columns - SIDE / 2)


def _flat(tone: Floats) -> Floats:
    return np.broadcast_to(tone, (SIDE, SIDE, 3))


def _gradient(first: Floats, second: Floats) -> Floats:
    share = _grid()[1][..., None] / SIDE
    return first * (1 - share) + second * share


def _disc(radius: float, soft: float) -> Floats:
    """1 inside, 0 outside, falling smoothly over `soft` pixels."""
    share = np.clip((radius + soft / 2 - _from_centre()) / soft, 0, 1)
    return share * share * (3 - 2 * share)


def _hair(random: np.random.Generator) -> Floats:
    """Lines of 0.8 to 2.5 px that grow out of a disc."""
    alpha = _disc(30, 1.5)
    rows, columns = _grid()
    for _ in range(24):
        angle, bend, width = random.uniform(0, 2 * np.pi), random.uniform(-0.4, 0.4), random.uniform(0.8, 2.5)
        for step in np.linspace(25, 70, 300):
            turned = angle + bend * (step - 25) / 45
            row, column = SIDE / 2 + step * np.sin(turned), SIDE / 2 + step * np.cos(turned)
            near = np.s_[int(row) - 3 : int(row) + 5, int(column) - 3 : int(column) + 5]
            away = np.hypot(rows[near] - row, columns[near] - column)
            alpha[near] = np.maximum(alpha[near], np.clip(width / 2 + 0.5 - away, 0, 1) * min(1, width))
    return alpha


def _glass(cover: float) -> Floats:
    """An even sheet of glass with a solid rim."""
    return np.maximum(_disc(50, 2) * cover, np.clip(3 - np.abs(_from_centre() - 48), 0, 1))


def _smoke(random: np.random.Generator) -> Floats:
    """Soft clouds, solid where they are thickest."""
    rows, columns = _grid()
    thick = np.zeros((SIDE, SIDE))
    for _ in range(6):
        top, left = random.uniform(45, SIDE - 45, 2)
        spread = random.uniform(8, 20)
        thick += np.exp(-((rows - top) ** 2 + (columns - left) ** 2) / (2 * spread**2))
    return np.clip(thick / thick.max() * 1.15 - 0.08, 0, 1)
