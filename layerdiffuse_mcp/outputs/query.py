"""Which pictures of the index are wanted, and how SQLite is asked for them.

    connection.create_function("holds", 2, holds, deterministic=True)
    connection.execute(f"SELECT path {WANTED}", asdict(Query(words="red apple")) | {"below": b"/home/me/out/"})

The texts never change: whatever is given is bound as a value.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Query:
    """Those pictures of which all that is given holds.

    `words` are words of the prompt, in any order and case; `since` and `until` are POSIX times, the second exclusive;
    `least` and `most` bound the width for one pixel of height.
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
    AND (:words IS NULL OR holds(prompt, :words))
    AND (:since IS NULL OR time >= :since) AND (:until IS NULL OR time < :until)
    AND (:model IS NULL OR model = :model) AND (:role IS NULL OR role = :role)
    AND (:verdict IS NULL OR verdict = :verdict)
    AND (:width IS NULL OR width = :width) AND (:height IS NULL OR height = :height)
    AND (:least IS NULL OR width >= :least * height) AND (:most IS NULL OR width <= :most * height)"""
"""Those that a query wants."""
NAMES = {name: f"SELECT DISTINCT {name} {BELOW} AND {name} IS NOT NULL ORDER BY 1" for name in ("model", "role")}
"""What there is to ask for."""


def holds(prompt: str | None, words: str) -> bool:
    """Whether a prompt holds all the words, in any order and case."""
    said = (prompt or "").casefold()
    return all(word in said for word in words.casefold().split())
