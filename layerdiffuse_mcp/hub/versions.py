"""Which version of a file this is: what is kept in memory of a file is kept under its version.

version = file_version(path)            # another one as soon as the file is replaced or written to
"""

import os
from pathlib import Path
from typing import NamedTuple

from layerdiffuse_mcp.errors import ModelNotFound
from layerdiffuse_mcp.wording import printable


class FileVersion(NamedTuple):
    """A file as it was at one moment; two that are equal hold the same, as far as the system tells."""

    path: Path
    size: int
    changed: int
    """Time of the last change in nanoseconds."""
    inode: int


def file_version(path: Path) -> FileVersion:
    """The version of a file that is there now, links followed.

    Raises:
        ModelNotFound: there is no such file.
    """
    try:
        real = Path(os.path.realpath(path))
        return version_of(real, real.stat())
    except OSError as error:
        raise ModelNotFound(f"{printable(path)} cannot be read: {error.strerror}. Call list_models again.") from None


def version_of(path: Path, facts: os.stat_result) -> FileVersion:
    """The version that `facts` tell of."""
    return FileVersion(path, facts.st_size, facts.st_mtime_ns, facts.st_ino)


def versions_below(path: Path) -> tuple[FileVersion, ...]:
    """The version of a file, or of every file in a folder and below; raises as `file_version` does."""
    files = [path] if not os.path.isdir(path) else sorted(file for file in path.rglob("*") if os.path.isfile(file))
    return tuple(map(file_version, files))
