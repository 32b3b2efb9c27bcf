"""Names of output files: `<output>/<date>/<time>-<slug>-<seed>-<role>.png`, without a seed where nothing was drawn.

The maker of a file says what it is (`file_name`); when it is written, the writer puts date and time before that.
`words_in` and `dated_by` read the words and the time of such a name.
"""

import re
from datetime import datetime
from pathlib import Path

SLUG_LENGTH = 40
_OURS = re.compile(r"([0-9]{6})-(?:(.+)-[0-9]+-[a-z0-9-]+|(.+)-(?:composed|cutout)|.+)")


def file_name(text: str, seed: int | None, role: str, suffix: str = ".png") -> str:
    """What a file is: the first words of a text, the seed it was drawn by, if it was drawn, and what it holds."""
    drawn = "" if seed is None else f"-{seed}"
    return f"{slug(text)}{drawn}-{slug(role)}{suffix}"


def dated(now: datetime) -> tuple[str, str]:
    """Folder of what is written at a time, and the time as it stands before the file's name."""
    return f"{now:%Y-%m-%d}", f"{now:%H%M%S}"


def slug(text: str) -> str:
    """The first words of a text as part of a file name: lower-case letters, digits and hyphens."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:SLUG_LENGTH].rstrip("-") or "picture"


def words_in(path: Path) -> str:
    """The words that a file of ours is named by, or all of another's name."""
    ours = _OURS.fullmatch(path.stem)
    return (ours and (ours[2] or ours[3])) or path.stem


def dated_by(path: Path) -> float | None:
    """When a file was made, in seconds since 1970, by the folder and name that the writer gave it, if it has them."""
    ours = _OURS.fullmatch(path.stem)
    try:
        return datetime.strptime(f"{path.parent.name} {ours[1] if ours else ''}", "%Y-%m-%d %H%M%S").timestamp()
    except (ValueError, OverflowError, OSError):
        return None
