"""Putting pictures together, as a person types it."""

import json
from pathlib import Path

import pytest
from PIL import Image

from layerdiffuse_mcp.cli.parser import main
from layerdiffuse_mcp.images.read import read_picture


def test_compose_puts_pictures_together_and_changes_one_of_them(lines, tmp_path) -> None:
    Image.new("RGBA", (20, 10), "red").save(tmp_path / "lamp.png")
    layer = json.dumps({"image": str(tmp_path / "lamp.png"), "name": "lamp", "anchor": "right"})
    given = [str(tmp_path / "lamp.png"), layer, "--size", "40x10", "--format", "psd", "--name", "poster"]
    assert main(["compose", *given]) == 0
    printed = lines()
    assert printed["layer"] == "lamp at 20,0, 20x10"
    assert Path(printed["kept in"]).is_file()
    change = ["--source", printed["composed"], "--replace", 'lamp={"tint": "#0050ff"}', "--format", "png"]
    assert main(["compose", *change]) == 0
    changed = Path(lines()["composed"])
    assert "-poster-" in changed.name
    shown = read_picture(changed).rgba
    assert shown[5, 5].tolist() == [255, 0, 0, 255]
    assert shown[5, 35, 2] > shown[5, 35, 0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "give at least one"),
        (["{"], "no JSON object"),
        (['{"image": "a.png", "tnt": "red"}'], "a layer has no 'tnt'"),
        (["none.png"], "There is no file none.png"),
        (["--replace", "lamp={}"], "give its file as source"),
        (["none.png", "--size", "big"], "size"),
    ],
)
def test_what_cannot_be_composed_is_explained(capsys, given, words) -> None:
    assert main(["compose", *given]) == 1
    assert words in capsys.readouterr().err
