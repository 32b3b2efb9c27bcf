"""The command `set`: pictures of several subjects in one style; the tool generate_set in a terminal.

layerdiffuse-mcp set "a sword" "a shield" --style "flat" --cell 64x64 --anchor bottom -o out/
"""

import argparse

from layerdiffuse_mcp.api.cells import Cell
from layerdiffuse_mcp.api.fields import DRAW_SEED
from layerdiffuse_mcp.api.requests import MAX_SUBJECTS, GenerateRequest, validated
from layerdiffuse_mcp.api.sets import SEEDS, set_of
from layerdiffuse_mcp.cli.drawing import NOT_FLAGS, draw, split
from layerdiffuse_mcp.cli.flags import Commands, add_flag, add_output, given_fields, settings_of

OF_ONE = {"image", "mask", "strength", "count", "width", "height", "fit", "want"}
"""Fields of a request that mean nothing for a set: the cell says how large its pictures are."""
COMMON = [name for name in GenerateRequest.model_fields if name not in NOT_FLAGS | OF_ONE]


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser("set", help="draw icons, sprites or stickers of several subjects, and their sheet")
    parser.add_argument(
        "subjects", nargs="+", metavar="SUBJECT", help=f"what to draw, 1 to {MAX_SUBJECTS}: a picture each"
    )
    parser.add_argument("--style", default="", metavar="TEXT", help="what all have in common, put behind each subject")
    rules = "; ".join(f"{name}: {what}" for name, what in SEEDS.items())
    parser.add_argument("--seeds", choices=tuple(SEEDS), default="same", help=rules)
    for name, field in Cell.model_fields.items():
        add_flag(parser, "cell" if name == "size" else name, field, name)
    parser.add_argument(
        "--poses",
        nargs="+",
        metavar="FILE",
        help="a picture a subject, for the first of --control to follow",
    )
    parser.add_argument("--no-sheet", dest="sheet", action="store_false", help="the pictures alone, without a sheet")
    for name in COMMON:
        add_flag(parser, name, GenerateRequest.model_fields[name])
    add_output(parser)
    parser.set_defaults(run=_set)


def _set(options: argparse.Namespace) -> int:
    fields = split(given_fields(options, [*COMMON, "poses"]))
    request = set_of(
        options.subjects,
        options.style,
        seed=_seed(fields.pop("seed", DRAW_SEED)),
        seeds=options.seeds,
        cell=validated(Cell, given_fields(options, Cell.model_fields)),
        sheet=options.sheet,
        fields=fields,
    )
    draw(request, settings_of(options))
    return 0


def _seed(given: str | int) -> int:
    """A seed as it is typed, with a request's own bounds."""
    return validated(GenerateRequest, {"prompt": "x", "seed": given}).seed
