"""The commands as a person types them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from layerdiffuse_mcp.api.outcome import ImageResult
from layerdiffuse_mcp.cli.parser import main
from layerdiffuse_mcp.images.png import png_bytes
from layerdiffuse_mcp.images.read import read_picture
from layerdiffuse_mcp.outputs.index import Index
from layerdiffuse_mcp.recipes.recipe import read_recipe
from layerdiffuse_mcp.settings import Settings
from tests.narrow import write_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_models(folder, ("sd15",))
    return folder


@pytest.fixture
def arguments(models: Path, tmp_path: Path) -> list[str]:
    return ["--models-dir", str(models), "--output", str(tmp_path), "--device", "cpu"]


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What was printed on stdout as `name: value` lines."""
    printed = capsys.readouterr().out.splitlines()
    return dict(line.split(": ", 1) for line in printed if ": " in line)


def test_generate_prints_the_picture_its_preview_and_what_the_alpha_holds(arguments, capsys) -> None:
    status = main(["generate", "a red apple", "--model", "tiny-sd15", "--steps", "2", "--seed", "3", *arguments])
    printed = lines(capsys)
    assert status == 0
    assert Path(printed["foreground"]).name.endswith("-a-red-apple-3-foreground.png")
    assert Path(printed["preview"]).is_file()
    assert "transparent" in printed["alpha"] or "opaque" in printed["alpha"]


@pytest.fixture
def cup(arguments, capsys) -> Path:
    """A picture drawn alone."""
    main(["generate", "a cup", "--model", "tiny-sd15", "--steps", "2", "--seed", "4", *arguments])
    return Path(lines(capsys)["foreground"])


def test_reproduce_draws_the_picture_again_and_calls_it_identical(cup, arguments, capsys) -> None:
    assert main(["reproduce", str(cup), *arguments]) == 0
    again = lines(capsys)
    assert again["reproduced"] == "identical"
    assert again["foreground"] != str(cup)


@pytest.mark.parametrize(
    ("levels", "status", "words"), [(1, 0, "equal within 1 of 255"), (2, 1, "different by up to 2 of 255")]
)
def test_reproduce_tells_rounding_from_another_picture(cup, arguments, capsys, levels, status, words) -> None:
    pixels = read_picture(cup).rgba
    pixels[3, 5, 1] ^= levels
    moved = cup.with_name("moved.png")
    moved.write_bytes(png_bytes(pixels, recipe=read_recipe(cup)))
    assert main(["reproduce", str(moved), *arguments]) == status
    assert lines(capsys)["reproduced"].startswith(words)


def test_reproduce_calls_a_picture_of_another_size_different(cup, arguments, capsys) -> None:
    cut = cup.with_name("cut.png")
    cut.write_bytes(png_bytes(read_picture(cup).rgba[:-1], recipe=read_recipe(cup)))
    assert main(["reproduce", str(cut), *arguments]) == 1
    assert lines(capsys)["reproduced"].startswith("different in size")


def test_pictures_of_a_batch_come_back_from_their_own_recipes(arguments, capsys, tmp_path) -> None:
    several = ["--count", "3", "--steps", "4", "--width", "192"]
    main(["generate", "a cup", "--model", "tiny-sd15", "--seed", "4", *several, *arguments])
    pictures = sorted(path for path in tmp_path.rglob("*.png") if "preview" not in path.name)
    assert len(pictures) == 3
    for picture in pictures:
        assert main(["reproduce", str(picture), *arguments]) == 0


def test_reproduce_finds_the_picture_that_was_edited_beside_its_result(arguments, capsys, tmp_path) -> None:
    given = tmp_path / "given.png"
    Image.new("RGBA", (64, 64), (200, 30, 30, 128)).save(given)
    main(
        ["generate", "a cup", "--model", "tiny-sd15", "--steps", "2", "--seed", "4", "--image", str(given), *arguments]
    )
    first = lines(capsys)
    assert main(["reproduce", first["foreground"], *arguments]) == 0
    assert lines(capsys)["reproduced"] == "identical"
    Image.new("RGBA", (64, 64), (30, 200, 30, 128)).save(given)
    assert main(["reproduce", first["foreground"], *arguments]) == 1
    assert "given.png" in capsys.readouterr().err


def test_layers_and_their_own_prompts_have_flags(arguments, capsys) -> None:
    own = ["--task", "layers", "--background-prompt", "a meadow", "--steps", "1"]
    assert main(["generate", "a cup", "--model", "tiny-sd15", *own, *arguments]) == 0
    assert {"foreground", "background", "blended"} <= lines(capsys).keys()


def test_compose_puts_pictures_together_and_changes_one_of_them(arguments, capsys, tmp_path) -> None:
    Image.new("RGBA", (20, 10), "red").save(tmp_path / "lamp.png")
    layer = json.dumps({"image": str(tmp_path / "lamp.png"), "name": "lamp", "anchor": "right"})
    given = [str(tmp_path / "lamp.png"), layer, "--size", "40x10", "--format", "psd"]
    assert main(["compose", *given, *arguments]) == 0
    printed = lines(capsys)
    assert printed["layer"] == "lamp at 20,0, 20x10"
    assert Path(printed["kept in"]).is_file()
    change = ["--source", printed["composed"], "--replace", 'lamp={"tint": "#0050ff"}', "--format", "png"]
    assert main(["compose", *change, *arguments]) == 0
    shown = read_picture(Path(lines(capsys)["composed"])).rgba
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
def test_what_cannot_be_composed_is_explained(arguments, capsys, given, words) -> None:
    assert main(["compose", *given, *arguments]) == 1
    assert words in capsys.readouterr().err


def test_models_lists_what_there_is_and_what_it_can_do(arguments, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    assert main(["models", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "pocket" in printed
    assert "tiny-sd15" in printed
    assert "juggernaut-xl-v6" in printed


def test_doctor_shows_the_machine_and_the_folders(arguments, capsys, tmp_path) -> None:
    assert main(["doctor", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "torch" in printed
    assert f"{tmp_path} (writable)" in printed
    for model in ("pocket", "tiny-sd15", "juggernaut-xl-v6"):
        assert re.search(rf"{model} +offload (none|in_turn|layers): about .* at once, of .* GB for models", printed)


WRONG = {
    "empty prompt": (["generate", ""], "prompt is empty"),
    "width": (["generate", "x", "--width", "7"], "width .*64"),
    "model": (["generate", "x", "--model", "poket"], "There is no model 'poket'"),
    "recipe": (["reproduce", __file__], "not a picture"),
    "setting": (["generate", "x", "--queue-size", "0"], "queue_size"),
    "device": (["generate", "x", "--dtype", "float16", "--device", "cpu"], "float16"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_explained_in_one_line_on_stderr(case, capsys, tmp_path) -> None:

    command, hint = WRONG[case]
    assert main([*command, "--output", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.search(hint, printed.err)
    assert "Traceback" not in printed.err


def test_an_output_folder_that_cannot_be_written_is_named(models, tmp_path, capsys) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    given = ["--model", "tiny-sd15", "--steps", "1", "--models-dir", str(models), "--output", str(blocked)]
    assert main(["generate", "x", *given]) == 1
    assert str(blocked) in capsys.readouterr().err


def test_help_and_version_import_nothing_heavy() -> None:
    code = (
        "import sys; from layerdiffuse_mcp.cli.parser import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'cv2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout


def test_wanted_layers_names_and_formats_have_flags(arguments, capsys) -> None:
    own = ["--task", "layers", "--want", "blended,background", "--name", "My Cup", "--format", "webp", "--steps", "1"]
    assert main(["generate", "a cup", "--model", "tiny-sd15", *own, *arguments]) == 0
    printed = lines(capsys)
    assert printed.keys() & {"foreground", "background", "blended"} == {"background", "blended"}
    assert re.search(r"my-cup-\d+-blended\.webp$", printed["blended"])


@pytest.fixture
def pictures(arguments, capsys, tmp_path) -> list[Path]:
    """An older and a new composition; the older has what keeps its layers beside it."""
    Image.new("RGBA", (20, 10), "red").save(tmp_path / "lamp.png")
    made = []
    for format in ("psd", "png"):
        assert main(["compose", str(tmp_path / "lamp.png"), "--format", format, *arguments]) == 0
        made.append(Path(lines(capsys)["composed"]))
    os.utime(made[0], (1e9, 1e9))
    main(["compose", str(tmp_path / "lamp.png"), *arguments])
    Index(Settings(output_dir=tmp_path)).add([image_of(made[0])], beside=[made[0].with_suffix(".layers.json")])
    capsys.readouterr()
    return made


def image_of(path: Path) -> ImageResult:
    return ImageResult(path=path, role="blended", width=20, height=10, seed=0, alpha=None)


def test_clean_deletes_the_older_pictures_only_when_it_is_told_to(pictures, arguments, capsys, monkeypatch) -> None:
    old, new = pictures
    clean = ["clean", "--older-than", "30d"]
    assert main([*clean, *arguments]) == 1
    shown = capsys.readouterr()
    assert str(old) in shown.out
    assert str(new) not in shown.out
    assert "nobody can be asked here. Give --yes to delete these 2 files" in shown.err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    for answer, status in {"": 1, "no": 1, "y": 0}.items():
        assert old.is_file()
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert main([*clean, *arguments]) == status
    assert [old.exists(), old.with_suffix(".layers.json").exists(), new.is_file()] == [False, False, True]
    capsys.readouterr()
    assert main([*clean, "--yes", *arguments]) == 0
    assert "nothing to delete" in capsys.readouterr().err


def test_clean_leaves_what_was_changed(pictures, arguments, capsys) -> None:
    pictures[0].write_bytes(b"my own work")
    assert main(["clean", "--older-than", "30d", "--yes", *arguments]) == 0
    assert pictures[0].read_bytes() == b"my own work"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["clean", "--older-than", "soon"], "--older-than: 'soon' is no date"),
        (["clean", "--older-than", "30d", "--no-history"], "LAYERDIFFUSE_HISTORY is off"),
        (["find", "--no-history"], "LAYERDIFFUSE_HISTORY is off"),
        (["find", "--limit", "0"], "--limit"),
        (["delete", "job-1-1", "--yes"], "No picture 'job-1-1' was made below"),
    ],
)
def test_a_history_command_that_cannot_be_is_refused(pictures, arguments, capsys, command, words) -> None:
    assert main([*command, *arguments]) == 1
    assert words in capsys.readouterr().err
    assert all(path.is_file() for path in pictures)


def test_find_lists_and_delete_deletes_what_is_named(pictures, arguments, capsys) -> None:
    old, new = pictures
    assert main(["find", "--since", "2h", *arguments]) == 0
    shown = capsys.readouterr()
    assert str(new) in shown.out
    assert str(old) not in shown.out
    assert "2 of 2 pictures" in shown.err
    assert main(["delete", str(new), "--yes", *arguments]) == 0
    assert "deleted: 1 files" in capsys.readouterr().out
    assert [new.exists(), old.exists()] == [False, True]


def test_doctor_says_what_the_output_folder_holds(pictures, arguments, capsys) -> None:
    main(["doctor", *arguments])
    assert re.search(r"holds +4 pictures, \d+ kB; .* clean --older-than 30d", capsys.readouterr().out)
