"""Drawing, and drawing again, as a person types it."""

import io
import re
import sys
from pathlib import Path
from shutil import copy2

import pytest
from PIL import Image

from layerdiffuse_mcp.cli.parser import main
from layerdiffuse_mcp.images.png import png_bytes
from layerdiffuse_mcp.images.read import read_picture
from layerdiffuse_mcp.recipes.recipe import read_recipe

pytestmark = pytest.mark.usefixtures("narrow")


def test_generate_prints_the_picture_its_preview_and_what_the_alpha_holds(lines) -> None:
    status = main(["generate", "a red apple", "--model", "tiny-sd15", "--steps", "2", "--seed", "3"])
    printed = lines()
    assert status == 0
    assert Path(printed["foreground"]).name.endswith("-a-red-apple-3-foreground.png")
    assert Path(printed["preview"]).is_file()
    assert "transparent" in printed["alpha"] or "opaque" in printed["alpha"]
    assert printed["licences"] == "base unknown; layer files creativeml-openrail-m"


@pytest.fixture(scope="module")
def drawn_cup(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture drawn alone."""
    folder = tmp_path_factory.mktemp("cup")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAYERDIFFUSE_MODELS_DIR", str(models))
        patch.setenv("LAYERDIFFUSE_DEVICE", "cpu")
        given = ["--model", "tiny-sd15", "--steps", "2", "--seed", "4", "--output", str(folder)]
        assert main(["generate", "a cup", *given]) == 0
    [cup] = (path for path in folder.rglob("*-foreground.png"))
    return cup


@pytest.fixture
def cup(drawn_cup: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The picture in the test's own folder."""
    capsys.readouterr()
    return Path(copy2(drawn_cup, tmp_path / drawn_cup.name))


def test_reproduce_draws_the_picture_again_and_calls_it_identical(cup, lines) -> None:
    assert main(["reproduce", str(cup)]) == 0
    again = lines()
    assert again["reproduced"] == "identical"
    assert again["foreground"] != str(cup)


@pytest.mark.parametrize(
    ("levels", "status", "words"), [(1, 0, "equal within 1 of 255"), (2, 1, "different by up to 2 of 255")]
)
def test_reproduce_tells_rounding_from_another_picture(cup, lines, levels, status, words) -> None:
    pixels = read_picture(cup).rgba
    pixels[3, 5, 1] ^= levels
    moved = cup.with_name("moved.png")
    moved.write_bytes(png_bytes(pixels, recipe=read_recipe(cup)))
    assert main(["reproduce", str(moved)]) == status
    assert lines()["reproduced"].startswith(words)


def test_reproduce_calls_a_picture_of_another_size_different(cup, lines) -> None:
    cut = cup.with_name("cut.png")
    cut.write_bytes(png_bytes(read_picture(cup).rgba[:-1], recipe=read_recipe(cup)))
    assert main(["reproduce", str(cut)]) == 1
    assert lines()["reproduced"].startswith("different in size")


def test_pictures_of_a_batch_come_back_from_their_own_recipes(tmp_path) -> None:
    several = ["--count", "3", "--steps", "2", "--width", "128"]
    main(["generate", "a cup", "--model", "tiny-sd15", "--seed", "4", *several])
    pictures = sorted(path for path in tmp_path.rglob("*.png") if "preview" not in path.name)
    assert len(pictures) == 3
    for picture in pictures:
        assert main(["reproduce", str(picture)]) == 0


def test_reproduce_finds_the_picture_that_was_edited_beside_its_result(lines, capsys, tmp_path) -> None:
    given = tmp_path / "given.png"
    Image.new("RGBA", (64, 64), (200, 30, 30, 128)).save(given)
    main(["generate", "a cup", "--model", "tiny-sd15", "--steps", "2", "--seed", "4", "--image", str(given)])
    first = lines()
    assert main(["reproduce", first["foreground"]]) == 0
    assert lines()["reproduced"] == "identical"
    Image.new("RGBA", (64, 64), (30, 200, 30, 128)).save(given)
    assert main(["reproduce", first["foreground"]]) == 1
    assert "given.png" in capsys.readouterr().err


def test_layers_and_their_own_prompts_have_flags(lines) -> None:
    own = ["--task", "layers", "--background-prompt", "a meadow", "--steps", "1"]
    assert main(["generate", "a cup", "--model", "tiny-sd15", *own]) == 0
    assert {"foreground", "background", "blended"} <= lines().keys()


def test_an_output_folder_that_cannot_be_written_is_named(tmp_path, capsys) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    given = ["--model", "tiny-sd15", "--steps", "1", "--output", str(blocked)]
    assert main(["generate", "x", *given]) == 1
    assert str(blocked) in capsys.readouterr().err


def test_wanted_layers_names_and_formats_have_flags(lines) -> None:
    own = ["--task", "layers", "--want", "blended,background", "--name", "My Cup", "--format", "webp", "--steps", "1"]
    assert main(["generate", "a cup", "--model", "tiny-sd15", *own]) == 0
    printed = lines()
    assert printed.keys() & {"foreground", "background", "blended"} == {"background", "blended"}
    assert re.search(r"my-cup-\d+-blended\.webp$", printed["blended"])


def test_redraw_draws_a_picture_again_but_for_what_is_named(cup, lines) -> None:
    assert main(["redraw", str(cup), "--seed", "9", "--steps", "1"]) == 0
    again = read_recipe(Path(lines()["foreground"]))["request"]
    assert (again["seed"], again["stages"][0]["steps"], again["prompt"]) == (9, 1, "a cup")


PASTED = (
    "a cup\nNegative prompt: bad\n"
    "Steps: 1, Sampler: Euler, CFG scale: 5, Seed: 7, Size: 64x64, Model: tiny-sd15, VAE hash: 63aeecb90f"
)


@pytest.mark.parametrize("given", ["file", "stdin"])
def test_redraw_takes_a_parameter_text(given, lines, capsys, tmp_path, monkeypatch) -> None:
    (tmp_path / "pasted.txt").write_text(PASTED)
    monkeypatch.setattr(sys, "stdin", io.StringIO(PASTED))
    assert main(["redraw", "--parameters", "-" if given == "stdin" else str(tmp_path / "pasted.txt")]) == 0
    printed = capsys.readouterr()
    [path] = [line.removeprefix("foreground: ") for line in printed.out.splitlines() if line.startswith("foreground")]
    assert read_recipe(Path(path))["request"]["seed"] == 7
    assert "VAE hash: 63aeecb90f has no counterpart here" in printed.err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "either a picture or --parameters"),
        ([__file__, "--parameters", "x"], "either a picture or --parameters"),
        ([__file__], "not a picture"),
        (["--parameters", "none.txt"], "none.txt cannot be read"),
        (["--parameters", "."], r"cannot be read"),
    ],
)
def test_what_cannot_be_drawn_again_is_explained(given, words, capsys) -> None:
    assert main(["redraw", *given]) == 1
    assert words in capsys.readouterr().err


def test_upscale_enlarges_a_picture_and_its_result_is_reproduced(cup, lines) -> None:
    flags = ["--scale", "1.5", "--strength", "0.4", "--steps", "3", "--seed", "2", "--model", "tiny-sd15"]
    assert main(["upscale", str(cup), "a cup", *flags]) == 0
    made = lines()
    before, after = (read_picture(Path(path)).rgba.shape for path in (cup, made["foreground"]))
    assert after == (before[0] * 1.5, before[1] * 1.5, 4)
    assert main(["reproduce", made["foreground"]]) == 0
    assert lines()["reproduced"] == "identical"


def test_detail_is_scale_and_strength_on_the_command_line(lines, capsys) -> None:
    assert main(["generate", "a cup", "--model", "tiny-sd15", "--steps", "2", "--detail", "1.5,0.5"]) == 0
    detail = read_recipe(Path(lines()["foreground"]))["request"]["detail"]
    assert (detail["scale"], detail["strength"]) == (1.5, 0.5)
    assert main(["generate", "a cup", "--detail", "9"]) == 1
    assert "detail.scale must be at most 4" in capsys.readouterr().err
