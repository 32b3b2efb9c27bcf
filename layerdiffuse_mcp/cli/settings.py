"""The command `settings`: every setting with its value now, where that comes from, and what it sets."""

import argparse
import os

from pydantic.fields import FieldInfo

from layerdiffuse_mcp.cli.flags import Commands, add_settings, settings_of
from layerdiffuse_mcp.settings import Settings, variable
from layerdiffuse_mcp.wording import printable


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "settings",
        help="list the settings: value now, where it comes from, variable",
        epilog="With flags it lists what `serve` with the same flags would work with.",
    )
    add_settings(parser)
    parser.set_defaults(run=_list)


def _list(options: argparse.Namespace) -> int:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from layerdiffuse_mcp.cli.terminal import OUT

    settings = settings_of(options)
    table = Table("variable", "value now", "from", "what it sets", box=box.SIMPLE)
    for name, field in Settings.model_fields.items():
        shown = (variable(name), _value(name, settings), _origin(name, options, settings), _description(field))
        table.add_row(*map(Text, shown))
    OUT.print(table)
    return 0


def _value(name: str, settings: Settings) -> str:
    """A value as the variable would say it."""
    match settings.output if name == "output_dir" else getattr(settings, name):
        case bool(value):
            return "on" if value else "off"
        case None | ():
            return "-"
        case float(number):
            return f"{number:g}"
        case tuple(folders):
            return os.pathsep.join(map(printable, folders))
        case value:
            return printable(str(value))


def _origin(name: str, options: argparse.Namespace, settings: Settings) -> str:
    from layerdiffuse_mcp.cli.flags import SETTING

    if getattr(options, f"{SETTING}{name}") is not None:
        return "flag"
    if name in settings.model_fields_set:
        return "environment"
    unused = next((key for key in os.environ if key.upper() == variable(name)), None)
    return "default (the variable is empty or was not filled in)" if unused else "default"


def _description(field: FieldInfo) -> str:
    return field.description or ""
