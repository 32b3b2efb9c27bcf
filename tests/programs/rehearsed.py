"""A server on HTTP whose engine obeys its prompt; settings as `LAYERDIFFUSE_*` variables.

python tests/programs/rehearsed.py PORT
"""

import sys

from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.server.app import create_server_for
from layerdiffuse_mcp.server.http import serve
from layerdiffuse_mcp.server.tokens import guarding
from layerdiffuse_mcp.settings import Settings

if __name__ == "__main__":
    settings = Settings()
    tokens = guarding(None, settings)
    server = create_server_for(tokens, settings, lambda given: LocalBackend(given, "rehearsal:Engine"))
    serve(server, "127.0.0.1", int(sys.argv[1]), tokens, drain_seconds=settings.drain_seconds)
