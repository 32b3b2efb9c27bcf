"""What the embedded model draws means something: colours, soft and hard alpha, layers that belong together.

Seeds are fixed and margins wide: a better model passes too.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.api.outcome import Outcome
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.settings import Settings
from tests.saving import Engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("meaning")
    made = Engine(Settings(output_dir=folder, read_dirs=(folder,), models_dir=folder / "models", model="pocket"))
    yield made
    made.close()


def draw(engine: Engine, prompt: str, **given: object) -> Outcome:
    asked = {"prompt": prompt, "seed": 1, "steps": 8, **given}
    return engine.run(GenerateRequest.model_validate(asked), lambda _: None)


def layer(outcome: Outcome, role: str = "foreground") -> Path:
    return next(image.path for image in outcome.images if image.role == role)


def pixels(path: Path) -> np.ndarray:
    """(H, W, 4), 0..1."""
    return np.asarray(Image.open(path).convert("RGBA"), np.float32) / 255


def over(foreground: np.ndarray, background: np.ndarray) -> np.ndarray:
    alpha = foreground[..., 3:]
    return foreground[..., :3] * alpha + background[..., :3] * (1 - alpha)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one[..., :3] - other[..., :3]).mean())


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of what is mostly opaque."""
    a, b = one[..., 3] > 0.5, other[..., 3] > 0.5
    return float((a & b).sum() / max(1, (a | b).sum()))


@pytest.mark.parametrize(
    ("prompt", "strongest"), [("a red apple", 0), ("a green apple", 1), ("a green frog", 1), ("fire", 0)]
)
def test_colours_are_those_of_the_words(engine: Engine, prompt: str, strongest: int):
    picture = pixels(layer(draw(engine, prompt)))
    opaque = picture[picture[..., 3] > 0.98][:, :3]
    assert len(opaque) > 0.1 * picture[..., 3].size
    assert opaque.mean(0).argmax() == strongest


def softness(picture: np.ndarray) -> float:
    """The share of what can be seen at all that is neither clear nor opaque."""
    alpha = picture[..., 3]
    return float(((alpha > 0.06) & (alpha < 0.94)).sum() / (alpha > 0.06).sum())


def test_alpha_is_as_soft_as_the_words_say(engine: Engine):
    brick, smoke, glass = (
        softness(pixels(layer(draw(engine, prompt)))) for prompt in ("a brick", "blue smoke", "a glass fish")
    )
    assert 2 * brick < min(smoke, glass)


def test_around_a_subject_there_is_nothing(engine: Engine):
    alpha = pixels(layer(draw(engine, "a mushroom")))[..., 3]
    assert 0.15 < (alpha > 0.5).mean() < 0.85
    corners = alpha[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.max() < 0.1


def test_little_strength_keeps_the_silhouette_and_much_does_not(engine: Engine):
    apple = layer(draw(engine, "a red apple"))
    kept = pixels(layer(draw(engine, "a green apple", image=apple, strength=0.2)))
    lost = pixels(layer(draw(engine, "a guitar", image=apple, strength=0.9)))
    assert overlap(pixels(apple), kept) >= 0.9
    assert overlap(pixels(apple), lost) < 0.75


@pytest.fixture(scope="module")
def layers(engine: Engine) -> Outcome:
    return draw(engine, "a red apple on a meadow", task=Task.LAYERS)


@pytest.fixture(scope="module")
def unrelated(engine: Engine) -> np.ndarray:
    return pixels(layer(draw(engine, "a car at night with stars", task=Task.LAYERS, seed=9), "blended"))


def test_layers_drawn_together_make_the_blended_picture(layers: Outcome, unrelated: np.ndarray):
    foreground, background, blended = (pixels(layer(layers, role)) for role in ("foreground", "background", "blended"))
    error = distance(over(foreground, background), blended)
    assert error < 20 / 255  # the model card says 13
    assert error < 0.8 * distance(over(foreground, background), unrelated)


def test_a_background_for_a_foreground_shows_it_in_the_blended_picture(
    engine: Engine, layers: Outcome, unrelated: np.ndarray
):
    given = layer(layers, "foreground")
    outcome = draw(engine, "a red apple on a beach", task=Task.BACKGROUND_FROM_FOREGROUND, inputs={"foreground": given})
    composed = over(pixels(given), pixels(layer(outcome, "background")))
    assert distance(composed, pixels(layer(outcome, "blended"))) < 0.8 * distance(composed, unrelated)


def test_a_foreground_for_a_background_stands_on_it_in_the_blended_picture(
    engine: Engine, layers: Outcome, unrelated: np.ndarray
):
    given = layer(layers, "background")
    outcome = draw(
        engine, "a red apple on a meadow", task=Task.FOREGROUND_FROM_BACKGROUND, inputs={"background": given}
    )
    foreground = pixels(layer(outcome, "foreground"))
    assert 0.05 < (foreground[..., 3] > 0.5).mean() < 0.9
    composed, blended = over(foreground, pixels(given)), pixels(layer(outcome, "blended"))
    assert distance(composed, blended) < 0.8 * distance(composed, unrelated)
