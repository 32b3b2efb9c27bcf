"""What leaves the server is UTF-8, whatever names and texts the files on its disk hold.

    utf8({"path": "/pictures/\\udcff.png"})   # {"path": "/pictures/\ufffd.png"}

Python keeps bytes that are no UTF-8, and halves of UTF-16 pairs, as lone surrogates; JSON cannot say them.
"""

import re
from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel

SURROGATE = re.compile("[\ud800-\udfff]")


def utf8(value: Any) -> Any:
    """The same text, list, dictionary or model with U+FFFD for every lone surrogate in it."""
    match value:
        case str():
            return value if value.isascii() else SURROGATE.sub("\ufffd", value)
        case Mapping():
            return {utf8(key): utf8(inner) for key, inner in cast("Mapping[Any, Any]", value).items()}
        case list() | tuple():
            return [utf8(inner) for inner in cast("list[Any]", value)]
        case BaseModel():
            return value.model_copy(update={name: utf8(getattr(value, name)) for name in value.model_fields_set})
        case _:
            return value
