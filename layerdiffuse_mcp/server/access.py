"""Reading what an agent names: each file is resolved, checked, opened, and what was opened is checked again.

    with open_readable("cups/red.png", settings) as opened:
        opened.path         # where it really is
        opened.file         # its bytes, wherever the name leads by now

Nothing else opens a name that an agent gave: readers take the open file, or the private copy that `contents.py` keeps
of it for a job. The order is: resolve the name (links included), see that it lies below an allowed folder, open it
without following a link and without waiting for a pipe, see that it is a regular file of a bearable size, and ask the
system where the open file lies. Where the system cannot say (macOS, Windows), the path is resolved once more and must
lead, below an allowed folder, to the very file that is open.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from layerdiffuse_mcp.api.plan import GivenPicture
from layerdiffuse_mcp.errors import AccessDenied, ImageError, LayerDiffuseError
from layerdiffuse_mcp.images.files import open_regular, sha256
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import LISTED, QUOTED, printable, short, valid_text

BYTES_A_PIXEL = 8
"""What the largest picture takes as a file at most: four channels of 16 bits, uncompressed."""
HEADERS = 16 << 20
NAME_FOLDER = "name its folder in LAYERDIFFUSE_READ_DIRS, and the project folder too: that list replaces the default"
SEARCHED, COMPARED = 50_000, 100
"""Files and folders that a search looks at, and those of them whose content it reads."""


@dataclass(frozen=True)
class OpenedFile:
    """A file that may be read, open: `path` is where it lay when it was opened, `file` its content."""

    path: Path
    file: BinaryIO

    def __enter__(self) -> "OpenedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    @property
    def shown(self) -> str:
        """The path as UTF-8 can say it."""
        return valid_text(str(self.path))

    @property
    def size(self) -> int:
        """In bytes."""
        return os.fstat(self.file.fileno()).st_size


def open_readable(name: str | Path, settings: Settings) -> OpenedFile:
    """Open a file below an allowed folder.

    Relative names are taken from the output folder first, then from the working directory and the other folders.

    Raises:
        AccessDenied: it lies outside the allowed folders, or was moved out of them meanwhile.
        ImageError: there is no such file, it is no regular file, or larger than any picture that may be read.
    """
    allowed = [Path(os.path.realpath(folder)) for folder in settings.readable]
    path = _resolved(name, settings, allowed)
    try:
        opened = OpenedFile(path, open_regular(path, follow=False))
    except FileNotFoundError:
        raise ImageError(
            f"There is no file {_shown(name)}. Give its absolute path, or its path below a folder that may be read: "
            f"{_named(allowed)}."
        ) from None
    except OSError as error:
        why = error.strerror or error
        raise ImageError(f"{_shown(name)} cannot be read ({why}). Give the path of a regular file.") from None
    try:
        _check(opened, name, settings, allowed)
    except BaseException:
        opened.file.close()
        raise
    return opened


def find_picture(wanted: GivenPicture, folders: Sequence[Path], opener: Callable[[Path], OpenedFile]) -> OpenedFile:
    """The picture that a recipe names, open: where it was, else in the folders, by name first and then by its size.

    Only a file with the recipe's SHA-256 is it. Hidden folders and links are passed over.

    Raises:
        ImageError: it is not among the first SEARCHED files there.
    """
    for path in islice(_candidates(wanted, folders), COMPARED):
        try:
            opened = opener(path)
        except (LayerDiffuseError, OSError):
            continue  # whether it exists is not told
        if sha256(opened.file) == wanted.sha256:
            return opened
        opened.file.close()
    name = short(Path(wanted.name).name)
    raise ImageError(
        f"The recipe starts from {name}, and no file with its content (SHA-256 {wanted.sha256[:10]}...) is in the "
        f"folders that may be read: it was moved or has changed since. Put it back, or {NAME_FOLDER}."
    )


def _resolved(name: str | Path, settings: Settings, allowed: list[Path]) -> Path:
    """The real path of the file that a name means; it lies below an allowed folder."""
    try:
        given = Path(name).expanduser()
        below = [settings.output, settings.here, *allowed]
        candidates = [given] if given.is_absolute() else [folder / given for folder in below]
        real = [candidate.resolve() for candidate in candidates]
        inside = [path for path in real if _is_below(path, allowed)]
        found = next((path for path in inside if os.path.lexists(path)), inside[0] if inside else None)
    except (OSError, ValueError, RuntimeError) as error:  # NUL, too long, no such user, links in a circle
        why = getattr(error, "strerror", None) or error
        raise ImageError(f"{_shown(name)} is no name of a file ({short(str(why))}). Give an absolute path.") from None
    if found is None:
        raise _denied(name, allowed)
    return found


def _check(opened: OpenedFile, name: str | Path, settings: Settings, allowed: list[Path]) -> None:
    """See that what is open is what was to be opened."""
    where = _where(opened)
    if where is None or not _is_below(where, allowed):
        raise _denied(name, allowed)
    limit = BYTES_A_PIXEL * settings.max_pixels + HEADERS
    if opened.size > limit:
        raise ImageError(
            f"{_shown(name)} has {opened.size / 1e6:.0f} MB, and files of at most {limit / 1e6:.0f} MB are read. "
            "Give a smaller copy."
        )


def _where(opened: OpenedFile) -> Path | None:
    """Where the open file lies now; None when that cannot be said for sure."""
    try:
        return Path(os.readlink(f"/proc/self/fd/{opened.file.fileno()}"))
    except OSError:  # no Linux
        pass
    try:
        again = opened.path.resolve(strict=True)
        return again if os.path.samestat(os.lstat(again), os.fstat(opened.file.fileno())) else None
    except (OSError, RuntimeError):
        return None


def _candidates(wanted: GivenPicture, folders: Sequence[Path]) -> Iterator[Path]:
    path = Path(wanted.name)
    if path.is_absolute():
        yield path
    files = list(_files(folders))
    yield from (file for file in files if file.name == path.name)
    if wanted.bytes is not None:
        yield from (file for file in files if file.name != path.name and _size(file) == wanted.bytes)


def _files(folders: Sequence[Path]) -> Iterator[Path]:
    """The files below the folders, each once."""
    seen, looked = set[str](), 0
    for folder in folders:
        for root, below, names in os.walk(folder):
            below[:] = [name for name in below if not name.startswith(".")]
            looked += 1 + len(names)
            if looked > SEARCHED:
                return
            if root not in seen:
                seen.add(root)
                yield from (Path(root, name) for name in names)


def _size(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except OSError:
        return None


def _shown(name: str | Path) -> str:
    """A path as a message quotes it: the end of a long one, which says more than its beginning."""
    text = str(name)
    return short(text if len(text) <= QUOTED else "…" + text[1 - QUOTED :])


def _is_below(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _denied(name: str | Path, allowed: Sequence[Path]) -> AccessDenied:
    return AccessDenied(
        f"{_shown(name)} lies outside the folders that may be read. Allowed: {_named(allowed)}. "
        f"Copy the file there, or {NAME_FOLDER}."
    )


def _named(folders: Sequence[Path]) -> str:
    """The first folders; server_status lists all."""
    more = f" and {len(folders) - LISTED} more, which server_status lists" if len(folders) > LISTED else ""
    return ", ".join(printable(folder) for folder in folders[:LISTED]) + more
