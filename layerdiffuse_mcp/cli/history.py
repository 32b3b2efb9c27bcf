"""The commands on pictures made before: find, delete and clean. They do what find_images and delete_images do.

    layerdiffuse-mcp find red apple --since 7d
    layerdiffuse-mcp delete job-863032aa-1
    layerdiffuse-mcp clean --older-than 30d

Nothing is deleted unasked: what would go is listed first, and then a person says yes, or a script `--yes`.
"""

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from layerdiffuse_mcp.api.dates import FORMS, moment
from layerdiffuse_mcp.api.outcome import VERDICTS
from layerdiffuse_mcp.cli.flags import Commands, add_output, settings_of
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.outputs.query import SHAPES
from layerdiffuse_mcp.wording import in_words, printable, quoted

if TYPE_CHECKING:
    from layerdiffuse_mcp.outputs.removal import Removed

FILTERS = ("since", "until", "model", "role", "size", "verdict")


def add(commands: Commands) -> None:
    """Add the commands."""
    find = commands.add_parser("find", help="list pictures made before, the newest first")
    find.add_argument("words", nargs="*", metavar="WORD", help="words of the prompt, all of them")
    find.add_argument("--since", metavar="X", help=f"the earliest: {FORMS}")
    find.add_argument("--until", metavar="X", help=f"the latest, a day included: {FORMS}")
    find.add_argument("--model", metavar="X", help="base model that drew it")
    find.add_argument("--role", metavar="X", help="which layer: foreground, background, blended")
    find.add_argument("--size", metavar="X", help=f"width x height in pixels, or a shape: {', '.join(SHAPES)}")
    find.add_argument("--verdict", choices=VERDICTS, help="the verdict that it got when it was made")
    find.add_argument("--limit", type=int, default=20, metavar="N", help="how many to list; default 20")
    find.set_defaults(run=_find)

    delete = commands.add_parser("delete", help="delete pictures made here, and what was made beside them")
    delete.add_argument("images", nargs="+", metavar="IMAGE", help="an id or a path, as find lists them")
    delete.set_defaults(run=_delete)

    clean = commands.add_parser("clean", help="delete the older pictures made here")
    clean.add_argument("--older-than", required=True, metavar="X", help=f"made before: {FORMS}")
    clean.set_defaults(run=_clean)
    for command in (find, delete, clean):
        add_output(command)
    for command in (delete, clean):
        command.add_argument("--yes", action="store_true", help="delete without asking, for scripts")


def _find(options: argparse.Namespace) -> int:
    from layerdiffuse_mcp.outputs.index import Index
    from layerdiffuse_mcp.outputs.query import wanted
    from layerdiffuse_mcp.server.tools.history import beginning, made_at

    settings = settings_of(options)
    if options.limit < 1:
        raise InvalidRequest(f"--limit: {options.limit} is out of range; give 1 or more.")
    given = {name: getattr(options, name) for name in FILTERS}
    found = Index(settings).search(wanted(words=" ".join(options.words) or None, **given), options.limit)
    for entry in found.entries:
        said = (made_at(entry), entry.id, entry.role, entry.verdict, beginning(entry))
        _print(f"{printable(entry.path)} ({', '.join(part for part in said if part)})")
    _note(f"{len(found.entries)} of {found.total} pictures")
    if not found.complete:
        _note("pictures are still being read in: ask again in a moment")
    return 0


def _delete(options: argparse.Namespace) -> int:
    from layerdiffuse_mcp.outputs.index import Index
    from layerdiffuse_mcp.outputs.removal import named, remove

    settings = settings_of(options)
    index = Index(settings)
    entries = [named(index, image) for image in options.images]
    for image, entry in zip(options.images, entries, strict=True):
        if entry is None:
            raise InvalidRequest(f"No picture {quoted(image)} was made below {settings.output}: nothing was deleted.")
    known = list({entry.path: entry for entry in entries if entry}.values())
    return _asked(lambda really: remove(index, known, really=really), yes=options.yes)


def _clean(options: argparse.Namespace) -> int:
    from layerdiffuse_mcp.outputs.index import Index
    from layerdiffuse_mcp.outputs.query import Query
    from layerdiffuse_mcp.outputs.removal import remove

    settings = settings_of(options)
    index = Index(settings)
    found = index.search(Query(until=moment(options.older_than, "--older-than")))
    if not found.complete:
        raise InvalidRequest("Pictures are still being read in: try again in a moment. Nothing was deleted.")
    return _asked(lambda really: remove(index, found.entries, really=really), yes=options.yes)


def _asked(remove: Callable[[bool], "Removed"], *, yes: bool) -> int:
    """List what would be deleted, ask, and delete it; 1 where the answer was no."""
    would = remove(False)
    for file in would.deleted:
        _print(f"{printable(file.path)} ({in_words(file.bytes)})")
    for file in would.left:
        _note(f"left {printable(file.path)}: {file.why}")
    what = f"{len(would.deleted)} files, {in_words(sum(file.bytes for file in would.deleted))}"
    if not would.deleted:
        _note("nothing to delete")
        return 0
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidRequest(f"Nothing was deleted: nobody can be asked here. Give --yes to delete these {what}.")
        if input(f"Delete these {what}, for good? [y/N] ").strip().lower() not in ("y", "yes"):
            _note("nothing was deleted")
            return 1
    removed = remove(True)
    for file in removed.left:
        if file not in would.left:
            _note(f"left {printable(file.path)}: {file.why}")
    _print(f"deleted: {len(removed.deleted)} files, {in_words(sum(file.bytes for file in removed.deleted))}")
    return 0


def _print(line: str) -> None:
    from layerdiffuse_mcp.cli.terminal import OUT

    OUT.print(line, markup=False)


def _note(line: str) -> None:
    from layerdiffuse_mcp.cli.terminal import ERR

    ERR.print(line, markup=False)
