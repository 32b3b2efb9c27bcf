"""Settings: each has bounds that its uses stand, and what a client left empty or unfilled does no harm."""

import math
import typing
from pathlib import Path

import pytest
from pydantic import ValidationError

from layerdiffuse_mcp.settings import Settings

NUMBERS = [
    name
    for name, field in Settings.model_fields.items()
    if {int, float} & {field.annotation, *typing.get_args(field.annotation)}
]
FOLDERS = ["output_dir", "models_dir", "read_dirs"]


def folders_of(settings: Settings, name: str) -> tuple[Path, ...]:
    value = getattr(settings, name)
    return value if isinstance(value, tuple) else (value,)


def test_the_numbers_are_those_that_are_tested():
    assert {"max_memory", "idle_timeout", "queue_size", "wait_seconds", "max_pixels"} <= set(NUMBERS)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e10, 1e300, 10**30, -1])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_no_use_stands_is_refused(name: str, value: float):
    with pytest.raises(ValidationError, match=name):
        Settings(**{name: value})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("value", ["", "  ", "${SOMETHING}", "${user_config.folder}", " ${HOME:-/tmp} "])
@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_variable_that_is_empty_or_not_filled_in_counts_as_not_set(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv(f"LAYERDIFFUSE_{name.upper()}", value)
    assert getattr(Settings(), name) == Settings.model_fields[name].default
    assert (f"{name} is '{value.strip()}', which was not filled in" in caplog.text) == ("$" in value)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_with_a_variable_in_it_is_refused_in_words(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(f"LAYERDIFFUSE_{name.upper()}", "${HOME}/pictures")
    with pytest.raises(ValidationError, match=r"'\$\{HOME\}/pictures' holds a variable that was not filled in"):
        Settings()


@pytest.mark.parametrize("name", FOLDERS)
def test_the_home_folder_and_relative_folders_are_made_absolute(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for given, folder in (("~/own", tmp_path / "home" / "own"), ("own", tmp_path / "own")):
        monkeypatch.setenv(f"LAYERDIFFUSE_{name.upper()}", given)
        assert folders_of(Settings(), name) == (folder,)
        assert folders_of(Settings(**{name: given}), name) == (folder,)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", FOLDERS)
def test_the_home_of_nobody_is_refused_in_words(name: str):
    with pytest.raises(ValidationError, match="no folder that can be found"):
        Settings(**{name: "~nobody-of-that-name/x"})  # pyright: ignore[reportArgumentType]
