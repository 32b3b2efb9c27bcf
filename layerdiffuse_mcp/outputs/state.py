"""Small facts that outlast a server: JSON objects in the user's state folder.

    remember("paces.json", {"cpu": {"pocket": 0.4}})
    recall("paces.json")            # {"cpu": {"pocket": 0.4}}, or {} where nothing is known

Nothing depends on them: a file that is missing, damaged or not writable is nothing known. Of two servers that write at
once the later one wins. They read and write files: not in an event loop.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import platformdirs

from layerdiffuse_mcp.images.files import replace_atomically

LARGEST = 1_000_000
"""Bytes of a file that is one of ours."""

logger = logging.getLogger(__name__)


def recall(name: str) -> dict[str, Any]:
    """What was remembered in the file of that name."""
    try:
        with _file(name).open("rb") as file:
            known = json.loads(file.read(LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], known) if isinstance(known, dict) else {}


def remember(name: str, facts: Mapping[str, Any]) -> None:
    """Write the file anew."""
    path = _file(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(path, json.dumps(facts).encode())
    except OSError as error:
        logger.info("%s could not be written: %s", path, error)


def _file(name: str) -> Path:
    return platformdirs.user_state_path("layerdiffuse") / name
