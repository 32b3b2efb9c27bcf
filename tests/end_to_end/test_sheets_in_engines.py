"""Sheets load in the loaders of real game engines: PixiJS as it is, Phaser's parsers with its own frames."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.images.atlas import atlas_array, atlas_hash
from layerdiffuse_mcp.images.tasks import MakeSheetTask, SheetOptions
from layerdiffuse_mcp.images.work import run

SCRIPTS = Path(__file__).parent / "engines"

READERS = {
    "PixiJS": ("pixi.mjs", atlas_hash),
    "Phaser, frames by name": ("phaser.cjs", atlas_hash),
    "Phaser, frames in order": ("phaser.cjs", atlas_array),
}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the engines are installed."""
    work = tmp_path_factory.mktemp("engines") / "work"
    shutil.copytree(SCRIPTS, work, ignore=shutil.ignore_patterns("node_modules"))
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=work, check=True)
    return work


@pytest.mark.extras
@pytest.mark.parametrize("reader", READERS)
def test_an_engine_cuts_the_pictures_out_of_their_sheet(engines: Path, tmp_path: Path, reader: str):
    script, atlas = READERS[reader]
    pictures = {f"walk {number}": drawn(number) for number in range(5)}
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, picture in zip(paths, pictures.values(), strict=True):
        Image.fromarray(picture).save(path)
    options = SheetOptions(cell=(64, 64), anchor="bottom", extrude=1)
    made = run(MakeSheetTask(tuple(paths), tuple(pictures), options))
    (tmp_path / "sheet.png").write_bytes(made.data)
    (tmp_path / "sheet.json").write_bytes(atlas(made.frames, "sheet.png", (made.width, made.height)))
    command = ["node", script, str(tmp_path / "sheet.json")]
    ran = subprocess.run(command, cwd=engines, stdout=subprocess.PIPE, check=True)
    read: list[dict[str, Any]] = json.loads(ran.stdout)
    assert [frame["name"] for frame in read] == list(pictures)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    for frame, picture in zip(read, pictures.values(), strict=True):
        x, y, width, height = frame["frame"]
        assert np.array_equal(sheet[y : y + height, x : x + width], picture[2:-2, 2:-2])
        assert frame["canvas"] == [64, 64]
        assert frame["trim"][1] + frame["trim"][3] == 64
        assert frame["trim"][2:] == [width, height]
        assert frame["sheet"] == [made.width, made.height]


def drawn(number: int) -> np.ndarray:
    """A picture with an invisible border of 2 pixels."""
    picture = np.random.default_rng(number).integers(1, 256, (20 + 3 * number, 30 - 2 * number, 4), np.uint8)
    picture[:2] = picture[-2:] = picture[:, :2] = picture[:, -2:] = 0
    return picture
