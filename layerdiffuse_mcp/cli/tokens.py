"""The command `token`: a new token for a server on HTTP, and its entry for the file of tokens.

layerdiffuse-mcp token anna >> tokens.toml      # the entry; the token itself is shown on stderr, once
"""

import argparse
import re
import sys

from layerdiffuse_mcp.cli.flags import Commands
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.wording import quoted


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("token", help="make a token for a client of serve --http, and its entry")
    parser.add_argument("name", metavar="NAME", help="whose it is: small letters, digits, - and _")
    parser.set_defaults(run=_make)


def _make(options: argparse.Namespace) -> int:
    from layerdiffuse_mcp.server.tokens import NAME, hash_of, new_token

    if not re.fullmatch(NAME, options.name):
        raise InvalidRequest(
            f"{quoted(options.name)} is no name of a token: it has 1 to 40 small letters, digits, - and _."
        )
    token = new_token()
    print(f'[{options.name}]\nsha256 = "{hash_of(token)}"\n')
    print(f"The token of {options.name}, shown this once: {token}", file=sys.stderr)
    return 0
