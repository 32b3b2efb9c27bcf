"""The commands on finished pictures, as a person types them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.cli.parser import main
from layerdiffuse_mcp.images.png import png_bytes
from tests.images.composites import GREEN, subjects


def test_cut_out_prints_the_file_and_what_its_alpha_holds(tmp_path: Path, lines):
    subject = subjects()[0]
    Image.fromarray(subject.on(GREEN)).save(tmp_path / "mug.png")
    command = ["cut-out", str(tmp_path / "mug.png"), "--output", str(tmp_path / "out")]
    assert main([*command, "--background", "border"]) == 0
    assert lines()["how"].endswith("where it joins the border")
    assert main(command) == 0
    printed = lines()
    alpha = np.asarray(Image.open(printed["cut-out"]))[..., 3]
    assert np.abs(alpha - 255 * subject.alpha).mean() <= 1
    assert "transparent" in printed["alpha"]
    assert printed["how"] == "by the background colour #1ab240"


def test_cut_out_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["cut-out", "x.png", "--second-background", "white", "--output", str(tmp_path)]) == 1
    assert "give that picture too" in capsys.readouterr().err


COLOURS = {
    "himmelblau": "its English name",
    "0a3d62": 'lacks its #: give "#0a3d62"',
    "blak": "If a colour is meant: black.",
}


@pytest.mark.parametrize(("colour", "words"), COLOURS.items())
def test_an_unknown_colour_is_told_as_the_tools_do_wherever_one_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], colour: str, words: str
):
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(tmp_path / "mug.png")
    mug = str(tmp_path / "mug.png")
    for command in (
        ["cut-out", mug, "--background", colour],
        ["cut-out", mug, "--second-image", mug, "--second-background", colour],
        ["compose", mug, "--background", colour],
    ):
        assert main([*command, "--output", str(tmp_path / "out")]) == 1
        assert words in capsys.readouterr().err, command


def test_sheet_prints_the_sheet_and_an_atlas_that_names_it(tmp_path: Path, lines):
    for name in ("a", "b"):
        Image.fromarray(np.full((9, 7, 4), 200, np.uint8)).save(tmp_path / f"{name}.png")
    pictures = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert main(["sheet", *pictures, "--cell", "16x16", "--columns", "2", "--output", str(tmp_path / "out")]) == 0
    printed = lines()
    with Image.open(printed["sheet"]) as sheet:
        assert sheet.size == (34, 16)
    for name in ("atlas", "atlas array"):
        assert json.loads(Path(printed[name]).read_text())["meta"]["image"] == Path(printed["sheet"]).name


def test_inspect_says_what_a_picture_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    picture = np.zeros((8, 10, 4), np.uint8)
    picture[2:5, 3:7] = 200, 10, 10, 255
    (tmp_path / "dot.png").write_bytes(png_bytes(picture, recipe={"format": 3}, parameters="a dot\nSteps: 4"))
    assert main(["inspect", str(tmp_path / "dot.png"), "--recipe"]) == 0
    printed = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert printed["picture"] == "PNG, 10x8, with alpha"
    assert printed["visible box"] == "3, 2, 7, 5"
    assert "85% transparent" in printed["alpha"]
    assert json.loads(printed["recipe as JSON"]) == {"format": 3}
    assert json.loads(printed["parameters"]) == "a dot\nSteps: 4"


def test_inspect_says_what_is_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "x.png").write_bytes(b"no")
    for name in ("x.png", "none.png"):
        assert main(["inspect", str(tmp_path / name)]) == 1
        assert name in capsys.readouterr().err
