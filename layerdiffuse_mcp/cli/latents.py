"""The commands `encode` and `decode`: a picture into a transparent latent, and back, as the tools of these names do.

layerdiffuse-mcp encode mug.png -o out/
layerdiffuse-mcp decode mug.safetensors -o out/
"""

import argparse
from pathlib import Path

from layerdiffuse_mcp.api.requests import DecodeRequest, EncodeRequest, validated
from layerdiffuse_mcp.cli.drawing import draw
from layerdiffuse_mcp.cli.flags import Commands, add_flag, add_output, given_fields, settings_of

KINDS = {
    "encode": (EncodeRequest, "image", "an RGBA picture", "turn a picture into a transparent latent"),
    "decode": (
        DecodeRequest,
        "latent",
        "a latent that was saved, .safetensors",
        "turn a transparent latent into a picture",
    ),
}
"""By the command: its request, the field with its file, what that is, and what becomes of it."""


def add(commands: Commands) -> None:
    """Add the commands."""
    for command, (kind, given, what, does) in KINDS.items():
        parser = commands.add_parser(command, help=does)
        parser.add_argument(given, type=Path, metavar="FILE", help=what)
        for name, field in kind.model_fields.items():
            if name not in ("kind", given):
                add_flag(parser, name, field)
        add_output(parser)
        parser.set_defaults(run=_run, command=command)


def _run(options: argparse.Namespace) -> int:
    kind = KINDS[options.command][0]
    draw(validated(kind, given_fields(options, set(kind.model_fields) - {"kind"})), settings_of(options))
    return 0
