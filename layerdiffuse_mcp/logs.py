"""Where warnings and errors go: to stderr, and to a file for whoever's client throws that away.

log_to_stderr()
log_to(settings.log_file)                # at most 4 files of 5 MB: x.log, x.log.1, x.log.2, x.log.3
log_to(settings.log_file, "worker")      # of another process: x-worker.log, for two must not turn over one file

It comes after whatever sets up stderr: `logging.basicConfig` does nothing where there is a handler.
"""

import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path

from layerdiffuse_mcp.errors import OutputError
from layerdiffuse_mcp.wording import printable

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
LARGEST, KEPT = 5_000_000, 3
"""Bytes of a file, and how many older ones there are."""


def log_to_stderr() -> None:
    """Log to stderr, from now on, unless something does already.

    Called before the SDK's server is made, which else sets up a handler that imports what it shows errors with at the
    first of them: where that cannot be read, as without descriptors, logging an error ends the server.
    """
    logging.basicConfig(level=logging.WARNING, format=FORMAT)


def log_to(path: Path | None, process: str = "") -> None:
    """Log to a file, too, from now on; None: to none.

    Raises:
        OutputError: it cannot be written.
    """
    if path is None:
        return
    if process:
        path = path.with_name(f"{path.stem}-{process}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = RotatingFileHandler(path, maxBytes=LARGEST, backupCount=KEPT, encoding="utf-8", errors="replace")
    except (OSError, ValueError) as error:  # ValueError: no name at all, or a NUL in it
        why = getattr(error, "strerror", None) or error
        raise OutputError(
            f"The log file {printable(path)} cannot be written ({why}). "
            "Set LAYERDIFFUSE_LOG_FILE to a file in a folder that can, or to nothing."
        ) from error
    handler.setFormatter(logging.Formatter(FORMAT))
    handler.setLevel(logging.WARNING)
    logging.getLogger().addHandler(handler)
