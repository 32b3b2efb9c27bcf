"""Given pictures as content: a private copy each, by SHA-256, for as long as a job needs it.

A worker reads no path that an agent gave: what was behind it when the call came was opened once, checked, and copied
here; the request names the copy. Copies lie at `<folder>/<SHA-256>/<name>` in a folder that only this user may enter,
so that messages and recipes still tell the picture's name. Each is removed when the last job that uses it has ended,
the folder when the server ends; of a server that was killed the next one removes it.

    with contents.keeping() as keep:            # all are released again if the block fails
        request = EncodeRequest(image=keep(opened))
    job.at_end.append(lambda: contents.release(files_of(request)))
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

from layerdiffuse_mcp.errors import OutputError
from layerdiffuse_mcp.outputs.folder import Folder
from layerdiffuse_mcp.server.access import OpenedFile
from layerdiffuse_mcp.wording import valid_text

CHUNK = 1 << 20
PREFIX = "layerdiffuse-given-"
YOUNG, STALE = 60, 86_400
"""Ages in seconds: a younger folder may not be locked yet; an older one is left over where folders have no locks."""


class Contents:
    """The copies of one server. Safe to use from several threads."""

    def __init__(self) -> None:
        self._folder: Folder | None = None
        self._uses: Counter[Path] = Counter()
        self._lock = threading.Lock()

    def keep(self, opened: OpenedFile) -> Path:
        """The path of a copy of an open file; it stays until it is released as often as it was kept.

        Raises:
            OutputError: there is no room for it.
        """
        try:
            return self._copied(opened)
        except OSError as error:
            folder = tempfile.tempdir or "the folder for temporary files"
            raise OutputError(
                f"There is no room for a copy of {opened.path.name} in {folder} ({error.strerror or error}). Free "
                "space there, or have TMPDIR name a folder that can be written."
            ) from error

    @contextlib.contextmanager
    def keeping(self) -> Generator[Callable[[OpenedFile], Path]]:
        """Keep several; what was kept is released if the block fails."""
        kept: list[Path] = []
        try:
            yield self._keeper(kept)
        except BaseException:
            self.release(kept)
            raise

    @contextlib.contextmanager
    def borrowing(self) -> Generator[Callable[[OpenedFile], Path]]:
        """Keep several for as long as the block lasts."""
        kept: list[Path] = []
        try:
            yield self._keeper(kept)
        finally:
            self.release(kept)

    def _keeper(self, kept: list[Path]) -> Callable[[OpenedFile], Path]:
        def keep(opened: OpenedFile) -> Path:
            kept.append(self.keep(opened))
            return kept[-1]

        return keep

    def release(self, paths: Iterable[Path]) -> None:
        """Remove copies that nobody needs any more; other paths are left alone."""
        with self._lock:
            for path in paths:
                self._uses[path] -= 1
                if self._uses[path] == 0:
                    with contextlib.suppress(OSError):
                        path.unlink()
                        path.parent.rmdir()
                if self._uses[path] <= 0:
                    del self._uses[path]

    def close(self) -> None:
        """Remove all."""
        with self._lock:
            if self._folder is not None:
                with self._folder:
                    shutil.rmtree(self._folder.path, ignore_errors=True)
                self._folder = None

    def _copied(self, opened: OpenedFile) -> Path:
        temporary = self._made() / secrets.token_hex(8)
        digest = hashlib.sha256()
        try:
            with temporary.open("xb") as copy:
                opened.file.seek(0)
                while chunk := opened.file.read(CHUNK):
                    digest.update(chunk)
                    copy.write(chunk)
            name = valid_text(opened.path.name)
            path = temporary.parent / digest.hexdigest() / name
            with self._lock:
                path.parent.mkdir(exist_ok=True)
                if not (self._uses[path] and os.path.lexists(path)):
                    temporary.replace(path)
                self._uses[path] += 1
        finally:
            temporary.unlink(missing_ok=True)
        return path

    def _made(self) -> Path:
        with self._lock:
            if self._folder is not None and not self._folder.is_there():
                with self._folder:  # whatever tidies up there removed it
                    self._folder = None
            if self._folder is None:
                self._folder = Folder.open(Path(tempfile.mkdtemp(prefix=PREFIX)))
                self._folder.lock()
            return self._folder.path


def sweep() -> None:
    """Remove the copies of servers that were killed; whatever cannot be removed stays."""
    paths: list[Path] = []
    with contextlib.suppress(OSError):  # there is no such folder
        paths += Path(tempfile.gettempdir()).glob(PREFIX + "*")
    for path in paths:
        with contextlib.suppress(OSError):
            found = path.lstat()
            age = time.time() - found.st_mtime
            if (
                not stat.S_ISDIR(found.st_mode)
                or (hasattr(os, "getuid") and found.st_uid != os.getuid())
                or age < YOUNG
            ):
                continue
            with Folder.open(path) as folder:
                locked = folder.lock()
                if locked or (locked is None and age > STALE):
                    shutil.rmtree(path, ignore_errors=True)
