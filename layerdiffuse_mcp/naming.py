"""Names of output files: `<output>/<date>/<time>-<slug>-<seed>-<role>.png`."""

import re
from datetime import datetime
from pathlib import Path

SLUG_LENGTH = 40


def output_path(output: Path, prompt: str, seed: int, role: str) -> Path:
    """Where a picture made now belongs; the writer appends a number when the name is taken."""
    now = datetime.now().astimezone()
    return output / f"{now:%Y-%m-%d}" / f"{now:%H%M%S}-{slug(prompt)}-{seed}-{role}.png"


def slug(text: str) -> str:
    """The first words of a text as part of a file name: lower-case letters, digits and hyphens."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:SLUG_LENGTH].rstrip("-") or "picture"
