"""Importing much at once, as a process does that starts.

with uncollected():
    importlib.import_module("layerdiffuse_mcp.server.app")
"""

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Generator[None]:
    """Import without looking for garbage: what is imported stays, and going through it all, again and again, takes a
    fifth of the server's start and a quarter of a worker's. It is not gone through later either.
    """
    gc.collect()  # what is garbage by now would stay, too
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
