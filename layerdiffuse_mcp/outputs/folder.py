"""Folders that are opened once: what is done in one is done in that very folder, wherever its name leads by now.

    output = Folder.open(settings.output)            # made where it is missing; may itself be a link
    day = output.below("2026-03-01")                 # OSError when that is a link or no folder
    day.write("a.png", data)
    day.link("a.png", other, "b.png")                # never over an existing file

Files are created relative to the open folder (`dir_fd`) and never through a link (`O_NOFOLLOW`). Where the system has
neither (Windows), a folder is remembered by its identity instead and compared before each step: that refuses a folder
that was replaced, but not one that is replaced within the same moment.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

DIR_FD = hasattr(os, "O_NOFOLLOW") and {os.open, os.mkdir, os.link, os.rename, os.unlink, os.stat} <= os.supports_dir_fd
"""Whether files can be named relative to an open folder here."""
_OPEN_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


class Folder:
    """An open folder. Every method raises OSError; names are single names, without separators."""

    def __init__(self, path: Path, handle: int | None) -> None:
        self.path = path
        self.handle = handle
        self._identity = os.fstat(handle) if handle is not None else os.stat(path)

    @classmethod
    def open(cls, path: Path, *, make: bool = True) -> "Folder":
        """The folder of that path, made with its parents where it is missing unless `make` is False."""
        if make:
            path.mkdir(parents=True, exist_ok=True)
        return cls(path, os.open(path, _OPEN_FOLDER) if DIR_FD else None)

    def __enter__(self) -> "Folder":
        return self

    def __exit__(self, *_: object) -> None:
        if self.handle is not None:
            os.close(self.handle)

    def below(self, name: str, mode: int = 0o777, *, new: bool = False) -> "Folder":
        """A folder in this one, made where it is missing; `new`: FileExistsError when it is there already."""
        with contextlib.nullcontext() if new else contextlib.suppress(FileExistsError):
            os.mkdir(*self._args(name), mode, **self._at())
        return self.existing(name)

    def existing(self, name: str) -> "Folder":
        """A folder in this one that is there; OSError (ENOTDIR) when it is a link."""
        if not stat.S_ISDIR(self.stat(name).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, f"{name} in it is a link or a file, and should be a folder")
        if self.handle is None:
            return Folder(self.path / name, None)
        return Folder(self.path / name, os.open(name, _OPEN_FOLDER | _NO_LINK, dir_fd=self.handle))

    def is_there(self) -> bool:
        """Whether its path still leads to it."""
        try:
            return os.path.samestat(os.lstat(self.path), self._identity)
        except OSError:
            return False

    def names(self) -> list[str]:
        """What lies in it."""
        self._check()
        return sorted(os.listdir(self.path if self.handle is None else self.handle))

    def stat(self, name: str) -> os.stat_result:
        """Of the file itself, also where that is a link."""
        return os.stat(*self._args(name), follow_symlinks=False, **self._at())

    def write(self, name: str, data: bytes) -> None:
        """A new file of these bytes, which have reached the disk when this returns."""
        with os.fdopen(os.open(*self._args(name), _NEW_FILE | _NO_LINK, 0o666, **self._at()), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def read(self, name: str) -> BinaryIO:
        """The open file of that name; OSError for a link and for whatever is no file."""
        path, at = self._args(name)[0], self._at()
        if not stat.S_ISREG(self.stat(name).st_mode):
            raise OSError(errno.EINVAL, f"{name} is no file")
        file = open(path, "rb", opener=lambda given, _: os.open(given, _READ | _NO_LINK, **at))  # noqa: SIM115
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise OSError(errno.EINVAL, f"{name} is no file")
        return file

    def link(self, name: str, other: "Folder", new_name: str) -> None:
        """Give a file its name in another folder; FileExistsError when that is taken.

        It keeps the old name too, but on file systems without hard links.
        """
        source, target = self._args(name)[0], other._args(new_name)[0]
        try:
            os.link(source, target, src_dir_fd=self.handle, dst_dir_fd=other.handle)
        except FileExistsError:
            raise
        except OSError:  # no hard links here, whatever number says so: reserve the name, then replace the reservation
            os.close(os.open(target, _NEW_FILE | _NO_LINK, 0o666, **other._at()))
            try:
                os.replace(source, target, src_dir_fd=self.handle, dst_dir_fd=other.handle)
            except OSError:
                other.remove(new_name)
                raise

    def rename(self, name: str, new_name: str) -> None:
        """Rename what is in this folder."""
        source, target = self._args(name)[0], self._args(new_name)[0]
        os.rename(source, target, src_dir_fd=self.handle, dst_dir_fd=self.handle)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(*self._args(name), **self._at())

    def remove_folder(self, name: str) -> None:
        """Remove a folder of files."""
        with self.existing(name) as folder:
            for file in folder.names():
                folder.remove(file)
        os.rmdir(*self._args(name), **self._at())

    def lock(self) -> bool | None:
        """Whether the folder is this process's for as long as it is open; None where folders cannot be locked."""
        if fcntl is None or self.handle is None:
            return None
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True

    def sync(self) -> None:
        """Make the names in it durable, where the file system can (some network file systems refuse)."""
        if self.handle is not None:
            with contextlib.suppress(OSError):
                os.fsync(self.handle)

    def _at(self) -> dict[str, Any]:
        return {} if self.handle is None else {"dir_fd": self.handle}

    def _args(self, name: str) -> tuple[str]:
        """A name as the system's calls take it: alone beside a `dir_fd`, else as the path in the unchanged folder."""
        self._check()
        return (name if self.handle is not None else str(self.path / name),)

    def _check(self) -> None:
        if self.handle is None and not os.path.samestat(os.stat(self.path), self._identity):
            raise NotADirectoryError(errno.ENOTDIR, f"{self.path.name} was replaced by another folder meanwhile")


def contents(path: Path, suffixes: Collection[str]) -> tuple[int, int]:
    """How many files below a folder have one of the suffixes, and how many bytes all of its files take."""
    count = size = 0
    for root, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                found = os.lstat(os.path.join(root, name))
                size += found.st_size
                count += stat.S_ISREG(found.st_mode) and os.path.splitext(name)[1].lower() in suffixes
    return count, size


def picture_files(path: Path) -> Iterator[tuple[float, Path]]:
    """PNG and WebP files below a folder, with the times of their last changes; none hidden, no links."""
    for root, below, names in os.walk(path):
        below[:] = sorted((name for name in below if not name.startswith(".")), reverse=True)  # the last days first
        for file in (Path(root, name) for name in names if name.endswith((".png", ".webp"))):
            with contextlib.suppress(OSError):
                found = file.lstat()
                if stat.S_ISREG(found.st_mode):
                    yield found.st_mtime, file
