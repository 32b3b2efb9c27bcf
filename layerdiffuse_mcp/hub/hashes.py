"""SHA-256 of large files, computed once a version of a file: a base of 7 GB takes half a minute to read.

What was computed is kept in the user's cache folder, by path, size and time of the last change. A list that is damaged,
or cannot be written, costs nothing but the time. No torch.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

import platformdirs

from layerdiffuse_mcp.hub.headers import file_sha256

Known = dict[str, tuple[int, int, str]]
"""Size, time of change in nanoseconds and SHA-256, by path."""


def remembered_sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits; read whole only if it is new or has changed."""
    path = path.resolve()
    facts = path.stat()
    size, changed, known = _read().get(str(path), (0, 0, ""))
    if known and (size, changed) == (facts.st_size, facts.st_mtime_ns):
        return known
    digest = file_sha256(path)
    _write({**_read(), str(path): (facts.st_size, facts.st_mtime_ns, digest)})
    return digest


def cache_file() -> Path:
    """Where the list is kept."""
    return platformdirs.user_cache_path("layerdiffuse") / "sha256.json"


def _read() -> Known:
    known: Known = {}
    with suppress(OSError, ValueError, AttributeError):
        for path, row in json.loads(cache_file().read_text(encoding="utf-8")).items():
            match row:
                case [int(size), int(changed), str(digest)] if len(digest) == 64:
                    known[path] = (size, changed, digest)
                case _:
                    pass
    return known


def _write(known: Known) -> None:
    """Replace the list as a whole; files that are gone are forgotten."""
    here = {path: row for path, row in known.items() if os.path.isfile(path)}
    temporary = cache_file().with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(here), encoding="utf-8")
            os.replace(temporary, cache_file())
        finally:
            temporary.unlink(missing_ok=True)
