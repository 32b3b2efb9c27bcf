"""What doctor says, and that its commands bring what is missing."""

import re
from pathlib import Path

import pytest

from layerdiffuse_mcp.cli.doctor import missing
from layerdiffuse_mcp.cli.parser import main
from layerdiffuse_mcp.settings import Settings


@pytest.mark.usefixtures("narrow")
def test_doctor_shows_the_machine_and_the_folders(capsys, tmp_path) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "torch" in printed
    assert f"{tmp_path} (writable)" in printed
    for model in ("pocket", "tiny-sd15", "juggernaut-xl-v6"):
        assert re.search(rf"{model} +offload (none|in_turn|layers): about .* at once, of .* GB for models", printed)
    assert re.search(r"memory +[\d.]+ GB free of [\d.]+ GB; [\d.]+ GB of it for models", printed)
    assert not re.search(r"\d{8}", printed)


def test_doctor_ends_in_commands_that_bring_what_is_missing(capsys) -> None:
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "a base of the family SDXL, with its layer files: 17.41 GB" in printed
    listed = [line.strip() for line in printed.partition("To get it:")[2].splitlines() if line.strip()]
    assert {"layerdiffuse-mcp models prepare sdxl", "layerdiffuse-mcp models prepare sd15"} <= set(listed)
    assert listed == list(dict.fromkeys(one.command for one in missing(Settings())))


def test_layer_files_that_a_base_lacks_are_missing(narrow: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny-sd15.safetensors").symlink_to(narrow / "tiny-sd15.safetensors")
    monkeypatch.setenv("LAYERDIFFUSE_MODELS_DIR", str(tmp_path / "models"))
    commands = {one.command: one.what for one in missing(Settings())}
    assert commands["layerdiffuse-mcp models prepare tiny-sd15"] == "6 layer files of tiny-sd15: 2.24 GB"
    assert "layerdiffuse-mcp models prepare sd15" not in commands


def test_an_output_folder_that_cannot_be_written_is_missing(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAYERDIFFUSE_OUTPUT_DIR", str(tmp_path / "file"))
    assert missing(Settings())[0].command.startswith("export LAYERDIFFUSE_OUTPUT_DIR=")
