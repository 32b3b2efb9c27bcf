"""What the training draws with libraries of the `train` extra."""

import json
from pathlib import Path

import pytest
from PIL import Image

from training import data, plot

pytestmark = pytest.mark.extras

HALF = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 2"><path d="M0 0h1v2h-1z" fill="red"/></svg>"""


def test_an_svg_becomes_a_picture_with_straight_alpha():
    rgba = data.render_svg(HALF)
    assert rgba.shape == (data.SIZE, data.SIZE, 4)
    assert rgba[4, 4].tolist() == [255, 0, 0, 255]
    assert rgba[4, -4, 3] == 0


def test_learning_curves_are_drawn_from_a_stages_log(tmp_path: Path):
    rows = [{"step": step, "seconds": step, "loss": 1 / (1 + step), "db": step} for step in (49, 99)]
    (tmp_path / "unet.log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot.plot(tmp_path, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 400
