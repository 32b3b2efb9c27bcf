"""What is printed, and where: results on stdout as `name: value` lines, to be piped; bars and warnings on stderr."""

import contextlib
import sys
from collections.abc import Callable, Generator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from layerdiffuse_mcp.api import outcome

PIPED_WIDTH = 240
OUT = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPED_WIDTH)
ERR = Console(stderr=True, highlight=False)


def say(name: str, value: object) -> None:
    """Print a result; whatever is in it stands as it is."""
    OUT.print(f"{name}: {value}", markup=False)


def warn(text: str, kind: str = "warning") -> None:
    """Print what went not quite right, on stderr."""
    ERR.print(Text.assemble((f"{kind}:", "yellow"), f" {text}"), soft_wrap=True)


@contextlib.contextmanager
def progress_bar() -> Generator[Callable[[outcome.Progress], None]]:
    """A bar on stderr, and what moves it."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=ERR, transient=True) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda step: bar.update(task, completed=step.fraction, description=step.message)
