"""What pictures are called in an atlas, where nobody names them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layerdiffuse_mcp.images.png import png_bytes
from layerdiffuse_mcp.outputs.sheets import frame_name

OURS, RENAMED = "101500-a-red-apple-7-foreground.png", "hero.png"
DRAWN = {"request": {"prompt": "a red apple, flat<lora:icons:1>"}}
OF_A_SET = {**DRAWN, "subject": "red apple"}


@pytest.mark.parametrize(
    ("name", "recipe", "called"),
    [
        (OURS, OF_A_SET, "red apple"),
        (OURS, DRAWN, "a red apple"),
        (OURS, {"request": {"prompt": "ein grüner Apfel"}}, "ein grüner Apfel"),
        (OURS, {"request": {"prompt": "<lora:icons:1>"}}, Path(OURS).stem),
        (OURS, {"request": "damaged"}, Path(OURS).stem),
        (OURS, {"request": {"prompt": 7}, "subject": ["x" * 99]}, f"['{'x' * 35}..."),
        (OURS, None, Path(OURS).stem),
        (RENAMED, OF_A_SET, "hero"),
    ],
)
def test_a_frame_has_the_name_that_a_person_gave_or_else_what_was_drawn(
    tmp_path: Path, name: str, recipe: dict[str, Any] | None, called: str
):
    path = tmp_path / name
    path.write_bytes(png_bytes(np.zeros((4, 4, 4), np.uint8), recipe=recipe))
    assert frame_name(path) == called


def test_what_is_no_picture_is_called_by_its_file(tmp_path: Path):
    path = tmp_path / OURS
    path.write_bytes(b"none")
    assert frame_name(path) == path.stem
