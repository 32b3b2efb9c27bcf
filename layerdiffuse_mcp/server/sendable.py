"""What leaves the server is UTF-8, whatever names and texts the files on its disk hold, and no longer than is read.

utf8({"path": "/pictures/\\udcff.png"})   # {"path": "/pictures/?.png"}
readable(text)                          # its first and last lines, where it is long
"""

from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel

from layerdiffuse_mcp.wording import valid_text

LONGEST, END = 24_000, 4_000
"""Characters of a text at most, and of its last lines where lines are left out: those say what to doubt."""


def readable(text: str) -> str:
    """A tool's text as it is, or with its middle left out, which is said."""
    if len(text) <= LONGEST:
        return text
    begin = text[: LONGEST - END - 200].rpartition("\n")[0] or text[: LONGEST - END - 200]
    end = text[-END:].partition("\n")[2] or text[-END:]
    lines = text[len(begin) : len(text) - len(end)].strip("\n").count("\n") + 1
    left = f"{lines} line{'s' * (lines != 1)}, {len(text) - len(begin) - len(end)} characters in all"
    return f"{begin}\n… {left}, left out here: the structured content says it; or ask for less at once.\n{end}"


def utf8(value: Any) -> Any:
    """The same text, list, dictionary or model with a question mark for every lone surrogate in it."""
    match value:
        case str():
            return valid_text(value)
        case Mapping():
            return {utf8(key): utf8(inner) for key, inner in cast("Mapping[Any, Any]", value).items()}
        case list() | tuple():
            return [utf8(inner) for inner in cast("list[Any]", value)]
        case BaseModel():
            return value.model_copy(update={name: utf8(getattr(value, name)) for name in value.model_fields_set})
        case _:
            return value
