"""Single files: opened without being held up by what they are, replaced so that a reader sees one version.

Which files may be read is decided in `server/access.py`; what is to stay is written by `outputs/writer.py`.
"""

import errno
import hashlib
import os
import secrets
import stat
from pathlib import Path
from typing import Any, BinaryIO, cast

from layerdiffuse_mcp.wording import valid_text

_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


def open_regular(path: Path, *, follow: bool = True) -> BinaryIO:
    """Open a file for reading, and only a file: no folder, pipe, socket or device, none of which is waited for.

    Raises OSError; with `follow` False also for a link, where the system can tell. The result's `name` is the path.
    """
    file = open(path, "rb", opener=lambda name, _: os.open(name, _READ | (0 if follow else _NO_LINK)))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a file but a device, pipe or socket")
    return file


def name_of(source: Path | BinaryIO) -> str:
    """What messages call a file: its name alone, for it may be a copy in a folder nobody knows, as UTF-8 can say it.

    One in memory has none.
    """
    return valid_text(Path(str(getattr(source, "name", "the picture"))).name)


def sha256(file: BinaryIO) -> str:
    """SHA-256 of a whole open file, as 64 hex digits; leaves it at its beginning."""
    file.seek(0)
    digest = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
    file.seek(0)
    return digest


def replace_atomically(path: Path, data: bytes) -> None:
    """Write or replace a file that need not outlast a crash: readers see the old bytes or the new. Raises OSError."""
    temporary = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(6)}.part")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
