"""How messages say what they were given: names, values and sizes, short and always valid text.

raise ModelNotFound(f"There is no model {quoted(name)}.")
"""

import os
import re
from collections.abc import Sequence

MB, GB = 10**6, 10**9

QUOTED = 80
"""Most characters of what was given that a message repeats."""
LISTED = 12
"""Most of several things that it names."""


def quoted(given: object) -> str:
    """What was given, as messages repeat it: text in quotes, at most `QUOTED` characters of it."""
    try:
        text = given if isinstance(given, str) else str(given)
    except ValueError:
        return "a number of thousands of digits"
    shown = repr(text[:QUOTED]) if isinstance(given, str) else text[:QUOTED]
    return shown if len(text) <= QUOTED else f"{shown}... ({len(text)} characters)"


def short(given: object) -> str:
    """The same without quotes: at most `QUOTED` characters, which UTF-8 can say."""
    text = given if isinstance(given, str) else repr(given)
    text = text[: QUOTED - 1] + "…" if len(text) > QUOTED else text
    return valid_text(text).replace("\0", "\\0")


def spelled(name: str) -> str:
    """A name as it counts where neither case nor what stands between its words does: "DPM++ 2M" as "dpmpp_2m"."""
    return re.sub(r"[\s_-]+", "", name.casefold()).replace("+", "p")


def valid_text(text: str) -> str:
    """A text as UTF-8 can say it: a lone surrogate becomes a question mark, which is what a tokenizer reads too.

    Python keeps bytes of file names that are no UTF-8, and halves of UTF-16 pairs, as lone surrogates.
    """
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def printable(text: str | os.PathLike[str], at_most: int = 4096) -> str:
    """A name or path as it can be shown and sent: whatever is no UTF-8 or not printable stands as its escape.

    A file name is any bytes to the system; Python holds those that are no UTF-8 as lone surrogates, which no JSON can.
    """
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in os.fspath(text))
    return shown if len(shown) <= at_most else f"{shown[: at_most - 3]}..."


def listed(texts: Sequence[str]) -> str:
    """Texts in quotes, at most `LISTED` of them: "'a', 'b' and 3 more"."""
    named = [repr(short(text)) for text in texts[:LISTED]]
    named += [f"{len(texts) - LISTED} more"] if len(texts) > LISTED else []
    return f"{', '.join(named[:-1])} and {named[-1]}" if len(named) > 1 else named[0]


def counted(count: int, what: str) -> str:
    """How many there are of something: "1 pose", "2 poses"."""
    return f"{count} {what}{'s' * (count != 1)}"


def in_words(size: float) -> str:
    """A number of bytes as "7.11 GB", "743 MB" or "12 kB"."""
    if size >= 0.9995 * GB:
        return f"{size / GB:.2f} GB"
    return f"{size / MB:.0f} MB" if size >= MB else f"{max(size, 0) / 1000:.0f} kB"
