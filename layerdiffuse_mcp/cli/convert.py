"""The command `models convert`: makes the layer files that are published as a pickle, without running anything of it.

layerdiffuse-mcp models convert TransparentVAE.pth --output models/
"""

import argparse
from pathlib import Path

from layerdiffuse_mcp.cli.flags import Commands, settings_of


def add(behind: Commands) -> None:
    """Add `convert` to the commands behind `models`."""
    convert = behind.add_parser("convert", help="make the layer files that are published as a pickle")
    convert.add_argument("path", metavar="PATH", type=Path, help="the pickle, such as TransparentVAE.pth")
    convert.add_argument("--output", metavar="DIR", type=Path, help="where the files go; default: beside the pickle")
    convert.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    """Make the files and print where they are."""
    from layerdiffuse_mcp.backends.conversion import convert
    from layerdiffuse_mcp.cli.terminal import say, warn
    from layerdiffuse_mcp.families.registry import LAYER_FILES
    from layerdiffuse_mcp.hub import catalog
    from layerdiffuse_mcp.wording import in_words, printable

    settings = settings_of(options)
    made = convert(options.path, options.output)
    for path in made:
        say(f"made {path.name}", f"{in_words(path.stat().st_size)}, {printable(path)}")
    if any(catalog.located(LAYER_FILES[path.name], settings) is None for path in made):
        warn(f"They are found once they lie in {printable(settings.models_dir)}.", kind="note")
    return 0
