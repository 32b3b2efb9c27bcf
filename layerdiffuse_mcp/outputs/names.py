"""Names of output files: `<output>/<date>/<time>-<slug>-<seed>-<role>.png`.

The maker of a file says what it is (`file_name`); when it is written, the writer puts date and time before that.
"""

import re
from datetime import datetime

SLUG_LENGTH = 40


def file_name(text: str, seed: int, role: str, suffix: str = ".png") -> str:
    """What a file is: the first words of a text, its seed and what it holds."""
    return f"{slug(text)}-{seed}-{slug(role)}{suffix}"


def dated(now: datetime) -> tuple[str, str]:
    """Folder of what is written at a time, and the time as it stands before the file's name."""
    return f"{now:%Y-%m-%d}", f"{now:%H%M%S}"


def slug(text: str) -> str:
    """The first words of a text as part of a file name: lower-case letters, digits and hyphens."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:SLUG_LENGTH].rstrip("-") or "picture"
