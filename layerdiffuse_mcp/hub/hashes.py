"""SHA-256 of large files, computed once a version of a file: a base of 7 GB takes half a minute to read.

    version = file_version(path)
    hashes = BackgroundHashes()
    hashes.start(version)                   # in a thread of its own, one file after another
    hashes.sha256(version, report)          # waits for it; raising from `report` ends the waiting
    hashes.close()

What was computed is kept in the user's cache folder, by path, size and time of the last change. A list that is damaged,
or cannot be written, costs nothing but the time. No torch.
"""

import json
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import platformdirs

from layerdiffuse_mcp.errors import ModelNotFound
from layerdiffuse_mcp.hub.entries import in_words, printable
from layerdiffuse_mcp.hub.headers import file_sha256
from layerdiffuse_mcp.hub.versions import FileVersion, file_version
from layerdiffuse_mcp.images.files import replace_atomically

Known = dict[str, tuple[int, int, str]]
"""Size, time of change in nanoseconds and SHA-256, by path."""
MAX_LIST_BYTES = 4_000_000
BEAT = 0.2
"""Seconds between two reports of whoever waits."""
STALE_PART = 3600.0
"""Seconds after which a list that was not finished is left over from a process that died."""


def remembered_sha256(version: FileVersion, beat: Callable[[int], None] = lambda _: None) -> str | None:
    """SHA-256 of a version of a file, as 64 hex digits; read whole only if it is not known.

    None when the file is another by now. `beat` is called with the bytes that were read, every few megabytes; raising
    from it stops the reading.
    """
    size, changed, known = _read().get(str(version.path), (0, 0, ""))
    if known and (size, changed) == (version.size, version.changed):
        return known
    try:
        digest = file_sha256(version.path, beat)
        if file_version(version.path) != version:
            return None
    except (OSError, ModelNotFound):
        return None
    remember(version, digest)
    return digest


def remember(version: FileVersion, digest: str) -> None:
    """Keep the SHA-256 of a version of a file that was computed on the way."""
    _write({**_read(), str(version.path): (version.size, version.changed, digest)})


class BackgroundHashes:
    """SHA-256 of files, computed one after another in a thread that is there while there is work for it."""

    def __init__(self) -> None:
        self._results: dict[FileVersion, str | None] = {}
        self._waiting: queue.SimpleQueue[FileVersion] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._asked: set[FileVersion] = set()
        self._done = 0
        self._current: FileVersion | None = None
        self._closed = False

    def start(self, *versions: FileVersion) -> None:
        """Compute these in the background, unless they are known or on their way."""
        with self._changed:
            for version in versions:
                if version not in self._asked and not self._closed:
                    self._asked.add(version)
                    self._waiting.put(version)
            if self._thread is None and not self._waiting.empty():
                self._thread = threading.Thread(target=self._work, daemon=True, name="hash")
                self._thread.start()

    def sha256(self, version: FileVersion, report: Callable[[str], None]) -> str | None:
        """The SHA-256 as 64 hex digits; None when the file was replaced meanwhile, or cannot be read.

        While it is not known `report` is told how far it is, several times a second; raising from it ends the waiting
        and not the work, whose result the next one finds.
        """
        self.start(version)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: version in self._results or self._closed, BEAT)
                if version in self._results or self._closed:
                    return self._results.get(version)
                current, done = self._current or version, self._done
            report(
                f"reading {printable(current.path.name, 80)} for its checksum, once: "
                f"{in_words(done)} of {in_words(current.size)}"
            )

    def close(self) -> None:
        """Stop; what is being read is dropped at its next megabytes."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                if self._closed or self._waiting.empty():
                    self._thread = self._current = None
                    return
                version = self._current = self._waiting.get()
                self._done = 0
            digest = None
            try:
                with suppress(_Closed):
                    digest = remembered_sha256(version, self._beat)
            finally:  # whatever happens, nobody waits for ever
                with self._changed:
                    self._results[version] = digest
                    self._changed.notify_all()

    def _beat(self, count: int) -> None:
        with self._changed:
            self._done += count
            if self._closed:
                raise _Closed


class _Closed(Exception):
    """Nobody wants the hash any more."""


def cache_file() -> Path:
    """Where the list is kept."""
    return platformdirs.user_cache_path("layerdiffuse") / "sha256.json"


def sweep_lists() -> None:
    """Remove what a process that died left of writing the list."""
    with suppress(OSError):
        for part in cache_file().parent.glob(".sha256-*.part"):
            if time.time() - part.stat().st_mtime > STALE_PART:
                part.unlink()


def _read() -> Known:
    known: Known = {}
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        with open(cache_file(), encoding="utf-8") as file:
            rows = json.loads(file.read(MAX_LIST_BYTES))
        for path, row in rows.items():
            match row:
                case [int(size), int(changed), str(digest)] if len(digest) == 64:
                    known[path] = (size, changed, digest)
                case _:
                    pass
    return known


def _write(known: Known) -> None:
    """Replace the list as a whole; files that are gone are forgotten."""
    here = {path: row for path, row in known.items() if os.path.isfile(path)}
    with suppress(OSError):
        cache_file().parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(cache_file(), json.dumps(here).encode())
