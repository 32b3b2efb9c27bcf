"""A file's hash is computed once a version of it, by whoever asks first."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from layerdiffuse_mcp.errors import Cancelled
from layerdiffuse_mcp.hub.hashes import BackgroundHashes, cache_file, sweep_lists
from layerdiffuse_mcp.hub.hashes import remembered_sha256 as of_version
from layerdiffuse_mcp.hub.headers import HASH_CHUNK
from layerdiffuse_mcp.hub.versions import FileVersion, file_version


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


def ignore(_: str) -> None:
    pass


def test_a_hash_is_computed_in_the_background_and_waited_for(large) -> None:
    hashes = BackgroundHashes()
    hashes.start(file_version(large))
    assert hashes.sha256(file_version(large), ignore) == digest(large)
    assert hashes.sha256(file_version(large), ignore) == digest(large)
    hashes.close()


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[FileVersion]:
    """A file that a reader waits for: reading it ends when the test does."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    yield file_version(pipe)
    with suppress(OSError):
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))


def test_whoever_waits_for_a_hash_is_told_how_far_it_is_and_may_go(slow, large) -> None:
    hashes, said = BackgroundHashes(), []

    def report(message: str) -> None:
        said.append(message)
        if len(said) > 1:
            raise Cancelled("The job was cancelled.")

    for version in (slow, file_version(large)):
        with pytest.raises(Cancelled):
            hashes.sha256(version, report)
    assert said[0].startswith("reading pipe for its checksum, once: 0 kB of ")
    hashes.close()
    assert hashes.sha256(slow, report) is None


def test_a_hash_of_what_was_replaced_meanwhile_is_none(large) -> None:
    before = file_version(large)
    other = large.with_name("other")
    other.write_bytes(large.read_bytes())
    other.replace(large)
    hashes = BackgroundHashes()
    assert file_version(large) != before
    assert hashes.sha256(before, ignore) is None
    assert hashes.sha256(file_version(large), ignore) == digest(large)
    assert hashes.sha256(before._replace(path=large.with_name("gone")), ignore) is None
    hashes.close()


def test_reading_stops_between_two_chunks(tmp_path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(20 * HASH_CHUNK)
    read = []

    def stop(count: int) -> None:
        read.append(count)
        if sum(read) >= 16 * HASH_CHUNK:
            raise Cancelled("The job was cancelled.")

    with pytest.raises(Cancelled):
        of_version(file_version(path), stop)
    assert sum(read) == 16 * HASH_CHUNK
    assert max(read) <= 64_000_000
    assert not cache_file().exists()


def test_what_a_process_that_died_left_of_the_list_is_swept(cache) -> None:
    cache.parent.mkdir(parents=True)
    old, young = (cache.parent / f".sha256-{name}.part" for name in ("old", "young"))
    for part in (old, young):
        part.write_text("{")
    os.utime(old, times=(1, 1))
    sweep_lists()
    assert list(cache.parent.iterdir()) == [young]
