"""A script that serves without a guard: `python unguarded.py LOG` writes a line to LOG each time that it is run."""

import sys
from pathlib import Path

from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.server.app import create_server
from layerdiffuse_mcp.settings import Settings

with Path(sys.argv[1]).open("a") as log:
    log.write("run\n")
create_server(Settings(), lambda settings: LocalBackend(settings, "rehearsal:Engine")).run("stdio")
