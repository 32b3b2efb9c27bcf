"""Writing files so that a reader sees all of one or nothing, and no file is ever lost to another."""

import errno
import os
import secrets
from itertools import count
from pathlib import Path

from layerdiffuse_mcp.errors import OutputError


def write_atomically(path: Path, data: bytes) -> Path:
    """Write `data` to `path`, or to `name-2`, `name-3`, ... where that is taken; returns the path it got.

    The bytes go to a hidden temporary file in the same folder, reach the disk, and only then get their name, so a
    crash or a full disk leaves no half file. Missing folders are made. Two writers never get the same name.

    Raises:
        OutputError: the folder cannot be made or written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(6)}.part")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            named = _take_name(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(
            f"{path.parent} cannot be written ({error.strerror or error}). "
            "Free space there, or choose another output folder."
        ) from error
    return named


def replace_atomically(path: Path, data: bytes) -> None:
    """Write or replace a file that need not outlast a crash: readers see the old bytes or the new. Raises OSError."""
    temporary = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(6)}.part")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _take_name(temporary: Path, path: Path) -> Path:
    """Give the complete temporary file the first free name; an existing file is never replaced."""
    for number in count(1):
        candidate = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
        try:
            os.link(temporary, candidate)
        except FileExistsError:
            continue
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EMLINK):
                raise
            # no hard links on this file system: reserve the name, then replace the reservation
            try:
                candidate.open("xb").close()
            except FileExistsError:
                continue
            os.replace(temporary, candidate)
        return candidate
    raise AssertionError("count() has no end")


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, where folders can be opened (not on Windows)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems refuse; the data itself is safe
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(handle)
