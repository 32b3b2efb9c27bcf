"""A process without a home or a working directory gets one."""

import os
import stat
import tempfile
from pathlib import Path

import pytest

from layerdiffuse_mcp import surroundings


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without an account; returns the folder for temporary files."""
    pwd = pytest.importorskip("pwd")

    def unknown(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "")
    return tmp_path


def test_a_user_without_a_home_gets_a_folder_of_its_own(nobody: Path):
    surroundings.complete()
    home = Path.home()
    assert home.is_relative_to(nobody)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    os.environ.pop("HOME")
    surroundings.complete()
    assert Path.home() == home


def test_a_folder_that_others_may_write_to_is_nobodys_home(nobody: Path):
    (nobody / f"layerdiffuse-home-{os.getuid()}").mkdir()
    (nobody / f"layerdiffuse-home-{os.getuid()}").chmod(0o777)
    surroundings.complete()
    assert Path.home().parent == nobody
    assert stat.S_IMODE(Path.home().stat().st_mode) == 0o700


def test_a_link_is_nobodys_home(nobody: Path):
    (nobody / "elsewhere").mkdir(0o700)
    (nobody / f"layerdiffuse-home-{os.getuid()}").symlink_to(nobody / "elsewhere")
    surroundings.complete()
    assert Path.home().resolve() != nobody / "elsewhere"


def test_a_home_and_a_working_directory_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv(surroundings.HOME, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    surroundings.complete()
    assert (os.environ[surroundings.HOME], Path.cwd()) == (str(tmp_path), tmp_path)
