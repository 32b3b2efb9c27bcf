"""The command `view`: pictures and their layers in a browser on this machine; the page that clients draw as an app.

layerdiffuse-mcp view out/2026-01-01/*.png
layerdiffuse-mcp view --layers scene.png lamp.png
"""

import argparse
from pathlib import Path

from layerdiffuse_mcp.cli.flags import Commands, settings_of


def add(commands: Commands) -> None:
    """Add the command."""
    view = commands.add_parser("view", help="look at pictures on any background, in a browser on this machine")
    view.add_argument("images", metavar="PATH", type=Path, nargs="+", help="any pictures")
    view.add_argument("--layers", action="store_true", help="they are layers of one picture, the lowest first")
    view.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; default: any that is free")
    view.add_argument("--no-browser", action="store_true", help="only print the address")
    view.set_defaults(run=_view)


def _view(options: argparse.Namespace) -> int:
    """Print the address, open it, and serve until Ctrl-C or until the page is closed."""
    import webbrowser

    from layerdiffuse_mcp.cli.terminal import say
    from layerdiffuse_mcp.server.viewing import answer_for, serve

    answer = answer_for(options.images, settings_of(options).max_pixels, stacked=options.layers)

    def announce(address: str) -> None:
        say("address", address)
        if not options.no_browser:
            webbrowser.open(address)

    serve(answer, announce, options.port)
    return 0
