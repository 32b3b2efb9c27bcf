"""What the tests of compositions share."""

from pathlib import Path

import numpy as np
import pytest

from layerdiffuse_mcp.images.png import png_bytes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, (width, height, colour) in {"red": (20, 30, (255, 0, 0)), "blue": (20, 30, (0, 0, 255))}.items():
        pixels = np.zeros((height, width, 4), np.uint8)
        pixels[5:-5, 5:-5] = (*colour, 255)
        (tmp_path / f"{name}.png").write_bytes(png_bytes(pixels))
    return tmp_path
