"""Which pictures of the index are wanted, and how SQLite is asked for them.

    connection.create_function("holds", 3, holds, deterministic=True)
    connection.execute(f"SELECT path {WANTED}", asdict(Query(words="red apple")) | {"below": folder})

The texts never change: whatever is given is bound as a value.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from layerdiffuse_mcp.api.dates import moment
from layerdiffuse_mcp.api.fields import near
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.outputs.names import slug
from layerdiffuse_mcp.wording import quoted

SHAPES: dict[str, tuple[float | None, float | None]] = {
    "square": (0.95, 1.05),
    "portrait": (None, 0.95),
    "landscape": (1.05, None),
    "wide": (1.6, None),
}
"""Widths for one pixel of height, from and to."""
_SIZE = re.compile(r"([1-9]\d{0,5})\s*[x×*]\s*([1-9]\d{0,5})", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Query:
    """Those pictures of which all that is given holds.

    `words` are words of the prompt, or of the file's name where there was none, in any order and case; `since` and
    `until` are POSIX times, the second exclusive; `least` and `most` bound the width for one pixel of height.
    """

    words: str | None = None
    since: float | None = None
    until: float | None = None
    model: str | None = None
    role: str | None = None
    verdict: str | None = None
    width: int | None = None
    height: int | None = None
    least: float | None = None
    most: float | None = None


BELOW = "FROM pictures WHERE substr(path, 1, length(:below)) = :below"
"""Those below an output folder. Paths are bytes: a file name need not be UTF-8."""
WANTED = f"""{BELOW}
    AND (:words IS NULL OR holds(prompt, path, :words))
    AND (:since IS NULL OR time >= :since) AND (:until IS NULL OR time < :until)
    AND (:model IS NULL OR model = :model) AND (:role IS NULL OR role = :role)
    AND (:verdict IS NULL OR verdict = :verdict)
    AND (:width IS NULL OR width = :width) AND (:height IS NULL OR height = :height)
    AND (:least IS NULL OR width >= :least * height) AND (:most IS NULL OR width <= :most * height)"""
"""Those that a query wants."""
NAMES = {name: f"SELECT DISTINCT {name} {BELOW} AND {name} IS NOT NULL ORDER BY 1" for name in ("model", "role")}
"""What there is to ask for."""


def holds(prompt: str | None, path: bytes, words: str) -> bool:
    """Whether a prompt holds all the words, in any order and case; or without one the file's name, after its time."""
    if prompt is None:
        name = Path(os.fsdecode(path)).stem.partition("-")[2]
        return all(slug(word) in name for word in words.split())
    said = prompt.casefold()
    return all(word in said for word in words.casefold().split())


def wanted(
    *,
    words: str | None = None,
    since: str | None = None,
    until: str | None = None,
    model: str | None = None,
    role: str | None = None,
    size: str | None = None,
    verdict: str | None = None,
) -> Query:
    """The query for what a person or an agent says; what is None is not asked for.

    Raises:
        InvalidRequest: a date or a size is none, or the dates are in the wrong order.
    """
    first = moment(since, "since") if since is not None else None
    last = moment(until, "until", end=True) if until is not None else None
    if first is not None and last is not None and first >= last:
        raise InvalidRequest(f"since {quoted(since)} is not before until {quoted(until)}. Exchange them.")
    least = most = width = height = None
    if size is not None:
        if numbers := _SIZE.fullmatch(size.strip()):
            width, height = int(numbers[1]), int(numbers[2])
        elif (shape := size.strip().lower()) in SHAPES:
            least, most = SHAPES[shape]
        else:
            text = f"size {quoted(size)} is not understood: give width x height as in '1024x768', or a shape."
            raise InvalidRequest(f"{text} {near(shape, SHAPES)}")
    return Query(words, first, last, model, role, verdict, width, height, least, most)
