"""The commands on finished pictures, as a person types them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.cli.parser import main
from tests.images.composites import GREEN, subjects


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What was printed on stdout as `name: value` lines."""
    return dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if ": " in line)


def test_cut_out_prints_the_file_and_what_its_alpha_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    subject = next(subjects())
    Image.fromarray(subject.on(GREEN)).save(tmp_path / "mug.png")
    assert main(["cut-out", str(tmp_path / "mug.png"), "--output", str(tmp_path / "out")]) == 0
    printed = lines(capsys)
    alpha = np.asarray(Image.open(printed["cut-out"]))[..., 3]
    assert np.abs(alpha - 255 * subject.alpha).mean() <= 1
    assert "transparent" in printed["alpha"]
    assert printed["how"] == "by the background colour #1ab240"


def test_cut_out_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["cut-out", "x.png", "--second-background", "white", "--output", str(tmp_path)]) == 1
    assert "give that picture too" in capsys.readouterr().err


def test_sheet_prints_the_sheet_and_an_atlas_that_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("a", "b"):
        Image.fromarray(np.full((9, 7, 4), 200, np.uint8)).save(tmp_path / f"{name}.png")
    pictures = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert main(["sheet", *pictures, "--cell", "16x16", "--columns", "2", "--output", str(tmp_path / "out")]) == 0
    printed = lines(capsys)
    with Image.open(printed["sheet"]) as sheet:
        assert sheet.size == (34, 16)
    for name in ("atlas", "atlas array"):
        assert json.loads(Path(printed[name]).read_text())["meta"]["image"] == Path(printed["sheet"]).name
