"""`models convert`: in a process of its own, all or nothing, and never over what is there."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from layerdiffuse_mcp.backends import conversion
from layerdiffuse_mcp.cli.parser import main
from layerdiffuse_mcp.errors import LayerDiffuseError, OutOfMemory, WorkerDied
from layerdiffuse_mcp.families.flux import CODEC, PICKLE
from tests.flux_base import Harm, pickled

Lines = Callable[[], dict[str, str]]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    (tmp_path / "fetched").mkdir()
    path = tmp_path / "fetched" / PICKLE
    path.write_bytes(pickled())
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_files_come_where_the_catalogue_finds_them(
    published: Path, tmp_path: Path, lines: Lines, capsys: pytest.CaptureFixture[str]
):
    assert main(["models", "convert", str(published), "--output", str(tmp_path / "models")]) == 0
    assert names(tmp_path / "models") == sorted(CODEC.files)
    assert [line.removeprefix("made ") for line in lines()] == [*CODEC.files]
    assert {path.stat().st_mode for path in (tmp_path / "models").iterdir()} == {published.stat().st_mode}
    assert main(["models", "convert", str(published), "--output", str(tmp_path / "models")]) == 1
    assert "is in" in (said := capsys.readouterr().err)
    assert "already, and was left as it is" in said


def test_a_pickle_that_would_run_code_is_refused_and_leaves_nothing(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    torch.save({"a": Harm(tmp_path / "ran")}, published)
    assert main(["models", "convert", str(published)]) == 1
    assert "Nothing of it was run" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert names(published.parent) == [PICKLE]


def test_a_process_that_takes_too_long_is_stopped(published: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(conversion, "SECONDS", 0.05)
    with pytest.raises(WorkerDied, match="was not converted in 0 s: it was stopped"):
        conversion.convert(published)
    assert names(published.parent) == [PICKLE]


def test_a_process_that_takes_too_much_memory_is_stopped(published: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(conversion, "MEMORY", 1_000_000)
    with pytest.raises(OutOfMemory, match=r"takes more than .* of memory to convert"):
        conversion.convert(published)
    assert names(published.parent) == [PICKLE]


@pytest.mark.parametrize(
    ("name", "says"), [("absent.pth", "There is no file"), ("model.safetensors", "is no pickle by its name")]
)
def test_what_is_no_pickle_is_refused_before_anything_is_started(tmp_path: Path, name: str, says: str):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(LayerDiffuseError, match=says):
        conversion.convert(tmp_path / name)
