"""Names of output files: `<output>/<date>/<time>-<slug>-<seed>-<role>.png`, without a seed where nothing was drawn.

The maker of a file says what it is (`file_name`); when it is written, the writer puts date and time before that.
`words_in` and `dated_by` read the words and the time of such a name.
"""

import re
import sys
import unicodedata
from datetime import datetime
from pathlib import Path

SLUG_LENGTH, SLUG_BYTES = 40, 80
"""Of a slug at most: file systems take names of 255 bytes, and some hold two slugs."""
_OURS = re.compile(
    r"([0-9]{6})-(?:(.+)-(?:composed|cutout)(?:-[0-9]+)?|(.+)-[0-9]+-[^\sA-Z_]+|(.+)-latent(?:-[0-9]+)?|(.+))"
)
_LATIN = str.maketrans({
    "ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "þ": "th", "ð": "d", "đ": "d", "ħ": "h", "ł": "l", "ı": "i",
})  # fmt: skip
"""Letters that are more than a plain one with an accent."""


def file_name(text: str, seed: int | None, role: str, suffix: str = ".png") -> str:
    """What a file is: the first words of a text, the seed it was drawn by, if it was drawn, and what it holds."""
    drawn = "" if seed is None else f"-{seed}"
    return f"{slug(text)}{drawn}-{slug(role)}{suffix}"


def dated(now: datetime) -> tuple[str, str]:
    """Folder of what is written at a time, and the time as it stands before the file's name."""
    return f"{now:%Y-%m-%d}", f"{now:%H%M%S}"


def slug(text: str) -> str:
    """The first words of a text as part of a file name: lower-case letters without accents, digits and hyphens.

    Letters of other scripts stay, with their marks, as NFC; those that this system's file names cannot hold go.
    """
    kept = ""
    small = unicodedata.normalize("NFKD", text).lower().translate(_LATIN)  # a letter of mathematics is small now, too
    for char in unicodedata.normalize("NFKD", small):
        if unicodedata.category(char)[0] != "M":
            kept += char if char.isalnum() else "-"
        elif not kept[-1:].isascii():
            kept += char
    words = unicodedata.normalize("NFC", re.sub("-+", "-", kept).strip("-"))
    held = words[:SLUG_LENGTH].encode(sys.getfilesystemencoding(), "ignore")[:SLUG_BYTES]
    return held.decode(sys.getfilesystemencoding(), "ignore").strip("-") or "picture"


def words_in(path: Path) -> str:
    """The words that a file of ours is named by, without what we put around them, or all of another's name."""
    ours = _OURS.fullmatch(path.stem)
    return ours[ours.lastindex or 0] if ours else path.stem


def dated_by(path: Path) -> float | None:
    """When a file was made, in seconds since 1970, by the folder and name that the writer gave it, if it has them."""
    ours = _OURS.fullmatch(path.stem)
    try:
        return datetime.strptime(f"{path.parent.name} {ours[1] if ours else ''}", "%Y-%m-%d %H%M%S").timestamp()
    except (ValueError, OverflowError, OSError):
        return None
