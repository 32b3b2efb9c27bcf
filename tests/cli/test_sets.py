"""Sets, latents, and pictures on a given background, as a person types them: what the tools of these tasks make."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.api.cells import Cell
from layerdiffuse_mcp.api.requests import SetRequest
from layerdiffuse_mcp.cli.parser import main, make_parser
from layerdiffuse_mcp.images.png import png_bytes
from layerdiffuse_mcp.images.read import read_picture
from layerdiffuse_mcp.recipes.recipe import read_recipe
from layerdiffuse_mcp.server.tools.parameters import Output, SetOptions
from tests.narrow import write_control

MODEL = ["--model", "tiny-sd15", "--steps", "1", "--seed", "3"]

pytestmark = pytest.mark.usefixtures("narrow")


def test_a_set_prints_a_picture_for_each_subject_and_the_sheet_with_its_atlas(lines) -> None:
    own = ["--style", "flat", "--cell", "48x32", "--anchor", "bottom", "--seeds", "counted", "--name", "crockery"]
    assert main(["set", "a cup", "a jug", *own, *MODEL]) == 0
    printed = lines()
    for subject, seed in (("a cup", 3), ("a jug", 4)):
        picture = Path(printed[subject])
        with Image.open(picture) as opened:
            assert opened.size == (48, 32)
        request = read_recipe(picture)["request"]
        assert (request["prompt"], request["seed"], request["stages"][0]["steps"]) == (f"{subject}, flat", seed, 1)
        assert "-crockery-" in picture.name
    for name in ("atlas", "atlas array"):
        assert json.loads(Path(printed[name]).read_text())["meta"]["image"] == Path(printed["sheet"]).name
    assert Path(printed["preview"]).is_file()
    assert "alpha" in printed


def test_a_set_without_a_sheet_has_neither_sheet_nor_atlas(lines, tmp_path) -> None:
    assert main(["set", "a cup", "a jug", "--no-sheet", "--format", "webp", *MODEL]) == 0
    assert not lines().keys() & {"sheet", "atlas", "atlas array"}
    made = [path for path in tmp_path.rglob("*.*") if "-preview." not in path.name and path.parent.parent == tmp_path]
    assert [path.suffix for path in made] == [".webp", ".webp"]


def test_whatever_the_tool_for_sets_takes_has_a_flag() -> None:
    parsed = make_parser().parse_args(["set", "a cup"])
    elsewhere = {
        "loras": "in the style, <lora:...>", "preview": "a file", "wait_seconds": "waits",
        "key": "for calls", "pictures": "its subjects", "kind": "the command", "size": "--cell", "cell": "its fields",
    }  # fmt: skip
    wanted = {name for kind in (SetOptions, Output, SetRequest, Cell) for name in kind.model_fields}
    assert wanted - vars(parsed).keys() - elsewhere.keys() == set()


def test_poses_are_a_picture_a_subject(narrow, lines, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "models"
    write_control(folder / "controlnet" / "edges.safetensors", "sd15")
    for path in narrow.iterdir():
        (folder / path.name).symlink_to(path)
    monkeypatch.setenv("LAYERDIFFUSE_MODELS_DIR", str(folder))
    for number, left in enumerate((0, 24)):
        square = Image.new("RGBA", (64, 64))
        square.paste((255, 0, 0, 255), (left, 8, left + 40, 56))
        square.save(tmp_path / f"pose{number}.png")
    control = ["--control", json.dumps([{"model": "edges", "preprocess": "alpha_edge"}])]
    poses = ["--poses", *(str(tmp_path / f"pose{number}.png") for number in range(2))]
    assert main(["set", "a cup", "a cup", "--no-sheet", *control, *poses, *MODEL]) == 0
    printed = lines()
    first, second = (read_picture(Path(printed[name])).rgba for name in ("a cup 1", "a cup 2"))
    assert (first != second).any()


WRONG: dict[str, tuple[list[str], str]] = {
    "twice": (["a cup", "A  cup"], "are equal"),
    "poses": (["a cup", "a cup", "--poses", "a.png", "b.png"], "seeds counted make equal subjects differ"),
    "cell": (["a cup", "--cell", "big"], "128x128"),
    "seed": (["a cup", "--seed", "x"], "seed must be a whole number"),
    "last seed": (["a cup", "a pen", "--seed", str(2**32 - 1), "--seeds", "counted"], "choose a smaller seed"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_makes_no_set_is_explained(case: str, capsys) -> None:
    given, words = WRONG[case]
    assert main(["set", *given, "--model", "tiny-sd15"]) == 1
    assert words in capsys.readouterr().err


def test_a_foreground_for_a_picture_also_comes_on_that_picture(lines, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.full((90, 160, 3), (10, 20, 30), np.uint8)).save(photo)
    own = ["--task", "foreground_from_background", "--background", str(photo)]
    assert main(["generate", "a cup", *own, *MODEL]) == 0
    printed = lines()
    assert read_picture(Path(printed["composed"])).rgba.shape[:2] == (90, 160)
    assert "sketch" in printed["note"] or "photo.png itself" in printed["note"]


def test_a_latent_is_made_of_a_picture_and_a_picture_of_the_latent(lines, tmp_path: Path) -> None:
    given = tmp_path / "mug.png"
    given.write_bytes(png_bytes(np.full((64, 64, 4), (200, 30, 30, 128), np.uint8)))
    assert main(["encode", str(given), "--model", "tiny-sd15", "--name", "mug"]) == 0
    latent = lines()["latent"]
    assert main(["decode", latent, "--model", "tiny-sd15", "--format", "webp"]) == 0
    made = Path(lines()["foreground"])
    assert made.suffix == ".webp"
    assert read_picture(made).rgba.shape == (64, 64, 4)
