"""Deleting pictures that were made here, and nothing else.

    entry = named(index, "job-863032aa-1")              # or a path
    removed = remove(index, [entry])
    removed.deleted, removed.left                       # files that are gone, and the others with the reason

A file goes only if the index knows it, it lies below the output folder without a link on the way, and its content is
what was written: one that somebody has changed or put in its place has another SHA-256 and stays. With a picture goes
what was made beside it (a latent, an atlas, a composition's record, a preview), each under the same rule.
"""

import errno
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from layerdiffuse_mcp.images.files import sha256
from layerdiffuse_mcp.outputs.folder import Folder
from layerdiffuse_mcp.outputs.index import PICTURE_ID, Entry, Index

LINK = "a link is there now, and links are not followed"
OTHER = "a folder or a special file is there now"
CHANGED = "it has changed since it was made here, so that it may be somebody's work"
GONE = "it is gone already"
CANNOT = {errno.ENOENT: GONE, errno.ELOOP: LINK, errno.ENOTDIR: LINK, errno.EINVAL: OTHER, errno.ESTALE: CHANGED}
"""Why a file that cannot be opened is left."""


class Deleted(NamedTuple):
    """A file that is deleted, or would be, and its size in bytes."""

    path: Path
    bytes: int


class Left(NamedTuple):
    """A file that is not, and why."""

    path: Path
    why: str


class Removed(NamedTuple):
    """What became of the files: of each picture and, after it, of what was made beside it."""

    deleted: list[Deleted]
    left: list[Left]


def named(index: Index, given: str) -> Entry | None:
    """The picture of an id or a path; None if the index knows none below its output folder.

    Raises:
        InvalidRequest: no history is kept.
        OutputError: the index cannot be used.
    """
    if match := PICTURE_ID.fullmatch(given):
        return index.find(match[1], int(match[2]))
    try:
        path = index.output / Path(given).expanduser()
        return index.at(Path(os.path.realpath(path.parent), path.name))
    except (OSError, ValueError, RuntimeError):  # NUL, too long, no such user, links in a circle
        return None


def remove(index: Index, entries: Sequence[Entry], *, really: bool = True) -> Removed:
    """Delete pictures, what was made beside them, and their records; not `really`: only say what would go.

    Raises:
        OutputError: the index cannot be used.
    """
    removed = Removed([], [])
    for entry in entries:
        companions = index.companions(entry.path)
        if _removed(index, entry.path, entry.sha256, removed, really=really):
            for path, digest in companions:
                _removed(index, path, digest, removed, really=really)
            if really:
                index.forget(entry.path)
    return removed


def _removed(index: Index, path: Path, digest: str | None, removed: Removed, *, really: bool) -> bool:
    """Delete one file if it is ours; whether it is not there any more, or would not be."""
    try:
        with ExitStack() as opened:
            folder = opened.enter_context(Folder.open(index.output, make=False))
            for name in path.relative_to(index.output).parts[:-1]:
                folder = opened.enter_context(folder.existing(name))
            size = _checked(folder, path.name, digest)
            if really:
                folder.remove(path.name)
    except OSError as error:
        number = errno.ELOOP if path.is_symlink() else error.errno or 0
        removed.left.append(Left(path, CANNOT.get(number, error.strerror or str(error))))
        return number == errno.ENOENT
    removed.deleted.append(Deleted(path, size))
    return True


def _checked(folder: Folder, name: str, digest: str | None) -> int:
    """The size of a file that is still what was written; raises OSError for any other."""
    with folder.read(name) as file:
        found = os.fstat(file.fileno())
        same = sha256(file) == digest
    if not same or not os.path.samestat(folder.stat(name), found):
        raise OSError(errno.ESTALE, CHANGED)
    return found.st_size
