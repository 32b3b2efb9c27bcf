"""A file's hash is computed once a version of it, by whoever asks first."""

import hashlib
import os
from pathlib import Path

import pytest

from layerdiffuse_mcp.hub.hashes import cache_file
from layerdiffuse_mcp.hub.hashes import remembered_sha256 as of_version
from layerdiffuse_mcp.hub.versions import file_version


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_file()


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "base.safetensors"
    path.write_bytes(b"weights" * 1000)
    return path


def remembered_sha256(path: Path) -> str | None:
    return of_version(file_version(path))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_read_once_and_again_when_it_has_changed(large) -> None:
    before, facts = digest(large), large.stat()
    assert remembered_sha256(large) == before
    large.write_bytes(b"WEIGHTS" * 1000)
    os.utime(large, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert remembered_sha256(large) == before  # nothing tells that it is another: it was not read
    os.utime(large, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert remembered_sha256(large) == digest(large) != before


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"PATH": 5}', '{"PATH": [1, 2, "short"]}', '{"PATH": [null]}'])
def test_a_damaged_list_is_made_anew(large, cache, damage) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(damage.replace("PATH", str(large)))
    assert remembered_sha256(large) == digest(large)
    assert digest(large) in cache.read_text()


def test_files_that_are_gone_are_forgotten_and_others_are_not(large, cache, tmp_path) -> None:
    other, third = tmp_path / "other", tmp_path / "third"
    for path in (other, third):
        path.write_bytes(path.name.encode())
    remembered_sha256(large)
    remembered_sha256(other)
    other.unlink()
    remembered_sha256(third)
    kept = cache.read_text()
    assert str(large) in kept
    assert str(third) in kept
    assert str(other) not in kept
    assert list(cache.parent.iterdir()) == [cache]


def test_a_cache_that_cannot_be_written_costs_only_time(large, cache) -> None:
    cache.parent.parent.mkdir(parents=True)
    cache.parent.write_text("a file where the folder should be")
    assert remembered_sha256(large) == digest(large)
