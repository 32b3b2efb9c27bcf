"""The command `serve`, which is also what runs when no command is named."""

import argparse
import sys

from layerdiffuse_mcp.cli.flags import Commands, add_settings, settings_of


def add(commands: Commands) -> None:
    """Add the command."""
    serve = commands.add_parser("serve", help="serve MCP on stdio (the default command)")
    serve.add_argument("--http", action="store_true", help="serve Streamable HTTP instead of stdio")
    serve.add_argument("--host", default="127.0.0.1", help="address for --http; others than loopback need a token")
    serve.add_argument("--port", type=int, default=8000, help="port for --http")
    serve.add_argument("--token", help="bearer token that --http clients must send, of 16 characters or more")
    serve.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name that --http clients may have for this machine; can be given again",
    )
    add_settings(serve)
    serve.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    from layerdiffuse_mcp.server import app

    settings = settings_of(options)
    if options.http:
        app.serve_http(settings, options.host, options.port, options.token, options.allowed_host, _say_where)
        return 0
    return app.serve_stdio(settings)


def _say_where(address: str) -> None:
    print(f"serving on {address}, until Ctrl-C", file=sys.stderr)
