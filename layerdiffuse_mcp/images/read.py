"""Reading a user's picture without trusting it.

    picture = read_picture(path, max_pixels=64_000_000)
    picture.rgba            # (H, W, 4), uint8, upright, straight alpha
    picture.notes           # ("animated: only the first of 12 is used",)

Its size is known from the header and checked before a pixel is decoded; formats are few and named; whatever is wrong
ends as an ImageError that says what was found. Reading takes 4 bytes a pixel for the result and, while it lasts, what
the format's decoder takes: 4 a pixel, WebP's up to 20. Of a document of layers (PSD, ORA) the flattened picture is
read. A picture is named by a path or is an open file; which paths may be read at all is decided in `server/access.py`.
"""

import struct
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from layerdiffuse_mcp.errors import ImageError
from layerdiffuse_mcp.images.alpha import Bytes, tiles
from layerdiffuse_mcp.images.documents import flattened_in, holds_transparency, straighten
from layerdiffuse_mcp.images.files import name_of, open_regular
from layerdiffuse_mcp.images.tasks import MAX_PIXELS

FORMATS = ("PNG", "WEBP", "JPEG", "BMP", "GIF", "TIFF", "PSD")
OPAQUE = 255
LOOKED_AT = 16_000_000
"""Pixels of the largest picture whose alpha is read while a call is planned: that takes 5 bytes for each."""
Image.MAX_IMAGE_PIXELS = None  # `opened` has the limit of its own that the settings name

ORIENTATION = 0x0112
"""The EXIF tag that says how a picture is turned; from 5 on its sides are exchanged."""

# All that Pillow's readers raise for a damaged file, apart from the size errors
DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip

SELECTION = "layerdiffuse-selection"
"""Where an image's facts say that its fourth channel is no transparency."""
# What people take for a picture, by the first bytes
OTHER_KINDS = (
    (b"%PDF", "a PDF document"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML or SVG file"),
    (b"<!doctype", "a web page"),
    (b"<html", "a web page"),
    (b"8BPS", "a Photoshop document of a kind that is not read: save it with 8 bits a channel, as RGB"),
    (b"gimp xcf", "a GIMP document"),
    (b"\x80\x02", "a Python pickle"),
    (b"{", "a JSON file"),
)


@dataclass(frozen=True)
class Picture:
    """A picture as read: `rgba` (H, W, 4), uint8, straight alpha; `notes` say what was changed on the way."""

    rgba: Bytes
    format: str
    has_alpha: bool
    notes: tuple[str, ...] = ()


def read_picture(source: Path | BinaryIO, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read PNG, WebP, JPEG, BMP, GIF, TIFF, PSD or ORA, of any colour mode, as 8-bit RGBA.

    Raises:
        ImageError: no such file, not a picture of these formats, damaged, cut short, or of more than `max_pixels`.
    """
    with opened(source, max_pixels) as picture:
        name = "JPEG" if picture.format == "MPO" else str(picture.format)
        notes: list[str] = []
        frames = 1 if name == "PSD" else int(getattr(picture, "n_frames", 1))
        if name in ("PSD", "ORA"):
            notes.append("a document of layers: its flattened picture is used")
        if frames > 1 and picture.format != "MPO":
            several = "several pages" if name == "TIFF" else "animated"
            notes.append(f"{several}: only the first of {frames} is used")
        sixteen_bits = _has_16_bits(picture)
        if picture.getexif().get(ORIENTATION, 1) not in (0, 1):
            notes.append("turned upright as its EXIF data says")
        if sixteen_bits:
            notes.append("16 bits a channel reduced to 8")
        ImageOps.exif_transpose(picture, in_place=True)
        rgba, has_alpha = _rgba8(name_of(source), picture, notes)
        if SELECTION in picture.info:
            rgba[..., 3], has_alpha = OPAQUE, False
            notes.append("a saved selection is passed over")
        elif name == "PSD" and has_alpha:
            straighten(rgba)
    return Picture(rgba, name, has_alpha, tuple(notes))


def picture_size(source: Path | BinaryIO, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of a picture as `read_picture` would give it, from its header alone; errors as there.

    A PNG that says only after its pixels how it is turned is measured as it lies.
    """
    with opened(source, max_pixels) as picture:
        width, height = picture.size
        decodes = picture.format in ("PNG", "ORA") and "exif" not in picture.info  # which may stand at its end
        if decodes or picture.format in ("TIFF", "PSD"):  # whose size is that of the picture turned upright
            return width, height
        return (height, width) if picture.getexif().get(ORIENTATION, 1) in range(5, 9) else (width, height)


def is_opaque(source: Path | BinaryIO, max_pixels: int = MAX_PIXELS) -> bool:
    """Whether nothing shines through anywhere, as far as that can be told in `LOOKED_AT` pixels; errors as `opened`.

    A picture without an alpha channel is told by its header, and one with a transparent colour counts as transparent;
    of one with alpha that is larger nothing is decoded.
    """
    with opened(source, max_pixels) as picture:
        transparent = picture.info.get("transparency")
        if transparent is not None:
            return isinstance(transparent, bytes) and min(transparent, default=OPAQUE) == OPAQUE
        bands = [band for band in ("A", "a") if band in picture.getbands() and SELECTION not in picture.info]
        if not bands or picture.width * picture.height > LOOKED_AT:
            return not bands
        return picture.getchannel(bands[0]).getextrema()[0] == OPAQUE


def levels_apart(first: Path, second: Path) -> int | None:
    """By how many of 255 the RGBA pixels of two picture files differ at most; None if their sizes do.

    Colour below alpha 0 counts too. Raises ImageError.
    """
    one, other = read_picture(first).rgba, read_picture(second).rgba
    if one.shape != other.shape:
        return None
    return int((np.maximum(one, other) - np.minimum(one, other)).max())


@contextmanager
def opened_file(source: Path | BinaryIO) -> Generator[BinaryIO]:
    """The open file behind a path, closed afterwards, or the one given, at its beginning; raises ImageError."""
    if not isinstance(source, Path):
        source.seek(0)
        yield source
        return
    try:
        file = open_regular(source)
    except FileNotFoundError as error:
        raise ImageError(f"There is no file {name_of(source)}.") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{name_of(source)} cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    with file:
        yield file


@contextmanager
def opened(source: Path | BinaryIO, max_pixels: int = MAX_PIXELS) -> Generator[Image.Image]:
    """The Pillow image of a file, with only the header read and its size checked; errors inside become ImageError."""
    name = name_of(source)
    with opened_file(source) as file:
        try:
            with flattened_in(file) as (flat, kind), Image.open(flat, formats=FORMATS) as picture:
                picture.format = kind or picture.format
                if picture.format == "PSD" and "A" in picture.getbands():
                    position = flat.tell()
                    picture.info |= {} if holds_transparency(flat) else {SELECTION: True}
                    flat.seek(position)
                width, height = picture.size
                if width * height > max_pixels:
                    raise ImageError(
                        f"{name} is too large: {width}x{height} pixels; at most {max_pixels / 1e6:g} million are read. "
                        "Give a smaller copy."
                    )
                yield picture
        except UnidentifiedImageError as error:
            raise ImageError(
                f"{name} is not a picture that can be read: it looks like {_looks_like(file)}. "
                "Give a PNG, WebP, JPEG, BMP, GIF, TIFF, PSD or ORA file."
            ) from error
        except DAMAGED as error:
            raise ImageError(f"{name} is damaged or cut short ({error}). Give a complete file.") from error


def _rgba8(name: str, picture: Image.Image, notes: list[str]) -> tuple[Bytes, bool]:
    """Whatever the mode, 8-bit RGBA and whether there was any alpha; adds to `notes` what was lost."""
    mode = picture.mode
    if mode in ("I", "F"):
        raise ImageError(f"{name} has 32 bits a channel, which is not understood. Save it with 8 or 16 bits.")
    if mode == "CMYK":
        notes.append("CMYK converted to RGB without its colour profile")
    elif mode in ("P", "PA"):
        notes.append("palette colours converted")
    elif not mode.startswith("I;16") and mode not in ("1", "L", "LA", "RGB", "RGBA"):
        notes.append(f"{mode} colours converted")
    has_alpha = mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in picture.info
    rgba = np.empty((picture.height, picture.width, 4), np.uint8)
    for rows, columns in tiles(picture.height, picture.width):
        rgba[rows, columns] = _converted(picture.crop((columns.start, rows.start, columns.stop, rows.stop)))
    return rgba, has_alpha


def _converted(part: Image.Image) -> Bytes:
    if part.mode.startswith("I;16"):
        levels = np.asarray(part).astype(np.uint16)
        alpha = np.where(levels == part.info.get("transparency"), 0, OPAQUE)
        return np.dstack([levels >> 8] * 3 + [alpha]).astype(np.uint8)
    if part.mode == "CMYK":
        part = part.convert("RGB")
    return np.asarray(part.convert("RGBA"))


def _has_16_bits(picture: Image.Image) -> bool:
    """Pillow reduces 16-bit colour while it decodes, and only its decoder's arguments tell."""
    if picture.mode.startswith("I;16"):
        return True
    return any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ()))


def _looks_like(file: BinaryIO) -> str:
    file.seek(0)
    head = file.read(64)
    if not head:
        return "an empty file"
    for start, words in OTHER_KINDS:
        if head.lstrip().lower().startswith(start.lower()):
            return words
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif"):
        return "an HEIC or AVIF picture"
    if head[8:9] == b"{":
        return "a safetensors file"
    return "text" if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head) else "an unknown or damaged file"
