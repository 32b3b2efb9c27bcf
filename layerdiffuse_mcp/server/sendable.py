"""What leaves the server is UTF-8, whatever names and texts the files on its disk hold.

utf8({"path": "/pictures/\\udcff.png"})   # {"path": "/pictures/?.png"}
"""

from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel

from layerdiffuse_mcp.wording import valid_text


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
