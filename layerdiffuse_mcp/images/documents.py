"""Documents of layers, read as the flattened picture that they hold: OpenRaster archives and Photoshop documents.

    with flattened_in(file) as (picture, kind):     # the picture's file: the PNG of an archive, else the file itself
        ...
    if not holds_transparency(file): ...            # whether a PSD's fourth channel is its transparency
    straighten(rgba)                                # colour as it was before Photoshop blended it with white

Nothing of an archive is unpacked but what the reader of its PNG asks for, and that not if it is far larger than the
archive itself.
"""

import contextlib
import struct
import zipfile
from collections.abc import Generator
from typing import BinaryIO, cast

import numpy as np

from layerdiffuse_mcp.errors import ImageError
from layerdiffuse_mcp.images.alpha import Bytes, tiles
from layerdiffuse_mcp.images.files import name_of
from layerdiffuse_mcp.wording import short

ZIP, PSD = b"PK\x03\x04", b"8BPS"
MERGED = "mergedimage.png"
"""Of an OpenRaster archive, as its specification names it."""
MOST_TIMES = 4
"""How much larger than its packed form that may be: a PNG is packed already."""
UNREADABLE = (zipfile.BadZipFile, RuntimeError, OSError, ValueError, EOFError, struct.error)
"""What an archive raises that is damaged, packed in another way, or has a password."""


@contextlib.contextmanager
def flattened_in(file: BinaryIO) -> Generator[tuple[BinaryIO, str | None]]:
    """The file to read pixels from, and "ORA" where that lies in an archive.

    Raises:
        ImageError: an archive that is damaged, without a flattened picture, or with one that unpacks to very much more.
    """
    file.seek(0)
    is_archive = file.read(len(ZIP)) == ZIP
    file.seek(0)
    if not is_archive:
        yield file, None
        return
    with contextlib.ExitStack() as stack:
        yield _merged(file, stack), "ORA"


def _merged(file: BinaryIO, stack: contextlib.ExitStack) -> BinaryIO:
    name = short(name_of(file))
    try:
        archive = stack.enter_context(zipfile.ZipFile(file))
        entry = archive.getinfo(MERGED)
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise NotImplementedError(f"{MERGED} is packed in another way than OpenRaster allows")
        if entry.file_size > MOST_TIMES * entry.compress_size:
            raise ImageError(f"{name}: its {MERGED} unpacks to more than {MOST_TIMES} times its size. Save it anew.")
        return cast(BinaryIO, stack.enter_context(archive.open(entry)))
    except KeyError:
        raise ImageError(
            f"{name} is a zip archive without the flattened picture that OpenRaster files hold ({MERGED}). Give a "
            "picture, or the .ora file that a program of layers exported."
        ) from None
    except UNREADABLE as error:
        raise ImageError(f"{name} is damaged or cut short ({short(str(error))}). Give a complete file.") from error


def holds_transparency(file: BinaryIO) -> bool:
    """Whether the fourth channel of a PSD is the transparency of the whole, and no selection that somebody saved.

    Source: "Adobe Photoshop File Formats Specification": the number of layers is negative then. Raises struct.error.
    """
    file.seek(26)
    for _ in range(2):  # the palette, the resources
        file.seek(struct.unpack(">I", file.read(4))[0], 1)
    layers, _ = struct.unpack(">II", file.read(8))
    return layers > 0 and struct.unpack(">h", file.read(2))[0] < 0


def straighten(rgba: Bytes) -> None:
    """Take out of the colour of `rgba` (H, W, 4) the white that it was blended with, in place; alpha stays."""
    for rows, columns in tiles(*rgba.shape[:2]):
        part = rgba[rows, columns]
        alpha = part[..., 3:].astype(np.float32) / 255
        colour = (part[..., :3] - 255 * (1 - alpha)) / np.maximum(alpha, 1 / 255)
        part[..., :3] = np.clip(np.rint(colour), 0, 255)
