"""The command line: which commands there are, and how one is run.

    layerdiffuse-mcp                                 serve MCP on stdio
    layerdiffuse-mcp generate "a red apple" -o out/  draw without a client
    layerdiffuse-mcp set sword shield -o out/        draw a set of pictures in one style, with their sheet
    layerdiffuse-mcp upscale picture.png "an apple"  enlarge it with finer detail
    layerdiffuse-mcp decompose picture.png "a fair"  take it apart into layers
    layerdiffuse-mcp redraw picture.png --seed 8     draw a picture again, with changes
    layerdiffuse-mcp reproduce picture.png           draw it again and compare
    layerdiffuse-mcp cut-out photo.png -o out/       cut the subject out of a picture
    layerdiffuse-mcp sheet *.png -o out/             a sprite sheet with its atlas
    layerdiffuse-mcp compose scene.png lamp.png      put pictures together
    layerdiffuse-mcp inspect picture.png             what a picture's alpha holds
    layerdiffuse-mcp view picture.png                look at it in a browser, on any background
    layerdiffuse-mcp encode picture.png              into a transparent latent; decode makes a picture of one
    layerdiffuse-mcp find red apple --since 7d       pictures made before
    layerdiffuse-mcp clean --older-than 30d          delete the older ones, once asked
    layerdiffuse-mcp models                          which models there are
    layerdiffuse-mcp models prepare NAME             fetch a base and its layer files
    layerdiffuse-mcp models check NAME               say whether layer files work with a base
    layerdiffuse-mcp sanity-check                    draw what the authors of LayerDiffuse publish, to compare
    layerdiffuse-mcp doctor                          what this machine has and what is missing
    layerdiffuse-mcp settings                        what is set, and where
    layerdiffuse-mcp token NAME                      a token for a client over HTTP, and its entry

Settings come from the environment; only `serve` has flags for them. Each module beside this one adds its commands and
runs them; what is heavy it imports when it runs. To serve, only that command's module is imported: clients wait for it.
"""

import argparse
import importlib
import sys
from collections.abc import Iterable, Sequence
from contextlib import nullcontext

from layerdiffuse_mcp import __version__, surroundings
from layerdiffuse_mcp.errors import LayerDiffuseError
from layerdiffuse_mcp.imports import uncollected
from layerdiffuse_mcp.wording import printable

SERVING = "serving"
MODULES = (
    SERVING, "drawing", "sets", "compositions", "pictures", "viewing", "latents", "history", "models", "sanity",
    "doctor", "settings", "tokens",
)  # fmt: skip
"""What adds the commands, in the order in which the help lists them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 a failure that is explained on stderr, 2 wrong usage."""
    surroundings.complete()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")):
        arguments.insert(0, "serve")
    serving = arguments[0] == "serve"
    with uncollected() if serving else nullcontext():
        options = make_parser([SERVING] if serving else MODULES).parse_args(arguments)
        if serving:
            importlib.import_module("layerdiffuse_mcp.server.app")
    if sys.stdout is None:
        print("error: standard output is closed: let it lead somewhere, if only to /dev/null", file=sys.stderr)
        return 1
    try:
        status = options.run(options)
        sys.stdout.flush()
        return status
    except LayerDiffuseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        what = "standard output" if error.filename is None else printable(str(error.filename))
        print(f"error: {what} cannot be used ({error.strerror or error})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def make_parser(modules: Iterable[str] = MODULES) -> argparse.ArgumentParser:
    """The parser with the commands of these modules; each sets `run`: options in, exit status out."""
    parser = argparse.ArgumentParser(prog="layerdiffuse-mcp", description="Pictures and layers with real transparency.")
    parser.add_argument("--version", action="version", version=f"layerdiffuse-mcp {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in modules:
        importlib.import_module(f"{__package__}.{name}").add(commands)
    return parser
