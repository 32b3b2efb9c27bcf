"""Starts a process that does not run the program's main module again.

    start(context.Process(target=worker.main, args=...))

multiprocessing has each new process import the main module of the old one. A script that serves without
`if __name__ == "__main__"` would serve there a second time; no process of ours needs anything of it.
"""

import sys
import threading
from multiprocessing.process import BaseProcess
from types import ModuleType

from layerdiffuse_mcp.surroundings import working_directory

MAIN = "__main__"
_one_at_a_time = threading.Lock()


def start(process: BaseProcess) -> None:
    """Start a process of the "spawn" kind; raises what its own `start` does."""
    working_directory()  # which a process takes from its parent
    with _one_at_a_time:
        main = sys.modules[MAIN]
        sys.modules[MAIN] = ModuleType(MAIN)
        try:
            process.start()
        finally:
            sys.modules[MAIN] = main
