"""Finding, deleting and cleaning, as a person types it."""

import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from layerdiffuse_mcp.api.outcome import ImageResult
from layerdiffuse_mcp.cli.parser import main
from layerdiffuse_mcp.outputs.index import Index
from layerdiffuse_mcp.settings import Settings


@pytest.fixture
def pictures(lines, capsys, tmp_path) -> list[Path]:
    """An older and a new composition; the older has what keeps its layers beside it."""
    Image.new("RGBA", (20, 10), "red").save(tmp_path / "lamp.png")
    made = []
    for format in ("psd", "png"):
        assert main(["compose", str(tmp_path / "lamp.png"), "--format", format]) == 0
        made.append(Path(lines()["composed"]))
    (tmp_path / "2001-09-09").mkdir()
    for path in (made[0], made[0].with_suffix(".layers.json")):
        path.rename(tmp_path / "2001-09-09" / path.name)
    made[0] = tmp_path / "2001-09-09" / made[0].name
    main(["compose", str(tmp_path / "lamp.png")])
    Index(Settings(output_dir=tmp_path)).add([image_of(made[0])], beside=[made[0].with_suffix(".layers.json")])
    capsys.readouterr()
    return made


def image_of(path: Path) -> ImageResult:
    return ImageResult(path=path, role="blended", width=20, height=10, seed=0, alpha=None)


def test_clean_deletes_the_older_pictures_only_when_it_is_told_to(pictures, capsys, monkeypatch) -> None:
    old, new = pictures
    clean = ["clean", "--older-than", "30d"]
    assert main(clean) == 1
    shown = capsys.readouterr()
    assert str(old) in shown.out
    assert str(new) not in shown.out
    assert "nobody can be asked here. Give --yes to delete these 2 files" in shown.err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    for answer, status in {"": 1, "no": 1, "y": 0}.items():
        assert old.is_file()
        monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
        assert main(clean) == status
    assert [old.exists(), old.with_suffix(".layers.json").exists(), new.is_file()] == [False, False, True]
    capsys.readouterr()
    assert main([*clean, "--yes"]) == 0
    assert "nothing to delete" in capsys.readouterr().err


def test_clean_leaves_what_was_changed(pictures, capsys) -> None:
    pictures[0].write_bytes(b"my own work")
    assert main(["clean", "--older-than", "30d", "--yes"]) == 0
    assert pictures[0].read_bytes() == b"my own work"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["clean", "--older-than", "soon"], "--older-than: 'soon' is no date"),
        (["HISTORY=off", "clean", "--older-than", "30d"], "LAYERDIFFUSE_HISTORY is off"),
        (["HISTORY=off", "find"], "LAYERDIFFUSE_HISTORY is off"),
        (["find", "--limit", "0"], "--limit"),
        (["delete", "job-1-1", "--yes"], "No picture 'job-1-1' was made below"),
    ],
)
def test_a_history_command_that_cannot_be_is_refused(pictures, capsys, monkeypatch, command, words) -> None:
    if command[0] == "HISTORY=off":
        monkeypatch.setenv("LAYERDIFFUSE_HISTORY", "off")
        command = command[1:]
    assert main(command) == 1
    assert words in capsys.readouterr().err
    assert all(path.is_file() for path in pictures)


def test_find_lists_and_delete_deletes_what_is_named(pictures, capsys) -> None:
    old, new = pictures
    assert main(["find", "--since", "2h"]) == 0
    shown = capsys.readouterr()
    assert str(new) in shown.out
    assert str(old) not in shown.out
    assert "2 of 2 pictures" in shown.err
    assert main(["delete", str(new), "--yes"]) == 0
    assert "deleted: 1 files" in capsys.readouterr().out
    assert [new.exists(), old.exists()] == [False, True]


def test_doctor_says_what_the_output_folder_holds(pictures, capsys) -> None:
    main(["doctor"])
    assert re.search(r"holds +4 pictures, \d+ kB; .* clean --older-than 30d", capsys.readouterr().out)


def test_pictures_of_another_folder_are_found_and_deleted_there(pictures, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LAYERDIFFUSE_OUTPUT_DIR", str(tmp_path / "elsewhere"))
    there = ["-o", str(tmp_path)]
    assert main(["find", "composition", *there]) == 0
    assert str(pictures[1]) in capsys.readouterr().out.replace("\n", "")
    assert main(["clean", "--older-than", "30d", "--yes", *there]) == 0
    assert main(["delete", str(pictures[1]), "--yes", *there]) == 0
    assert not any(path.exists() for path in pictures)
