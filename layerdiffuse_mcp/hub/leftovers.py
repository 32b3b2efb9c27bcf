"""Partial files of downloads: how they are called, who works at one, and when one is given up.

    sweep()         # what was begun long ago and never ended: at the server's start, and before each download

Importing it, and a sweep that finds nothing old, take none of the hub's library but its constants.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from layerdiffuse_mcp.hub.hashes import sweep_lists

PART = ".layerdiffuse.part"
"""What the name of a partial file ends with: it is told from what other programs have under way in the cache."""
STALE_PART = 7 * 86400.0
"""Seconds after which a partial file that nobody went on with is given up."""
BEAT = 0.2
"""Seconds that a lock is waited for."""


def sweep() -> None:
    """Remove what was left half done too long ago to be gone on with. Never raises; safe beside running downloads.

    Of the model hub's cache only partial files of this project, and none that a process is working at.
    """
    from huggingface_hub import constants

    sweep_lists()
    parts: list[Path] = []
    with suppress(OSError):  # a cache that cannot be reached
        parts = list(Path(constants.HF_HUB_CACHE).glob(f"models--*/blobs/*{PART}"))
    for part in parts:
        with suppress(OSError):  # filelock's Timeout is one
            if time.time() - part.stat().st_mtime < STALE_PART:
                continue
            with lock(part.parent.parent.name, part.name.removesuffix(PART)):
                part.unlink(missing_ok=True)


def lock(folder: str, etag: str) -> Any:
    """The cache's own lock of a file's content, to be entered; raises filelock's Timeout while another has it."""
    from huggingface_hub import constants
    from huggingface_hub.utils import WeakFileLock

    path = Path(constants.HF_HUB_CACHE) / ".locks" / folder / f"{etag}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return WeakFileLock(path, timeout=BEAT)
