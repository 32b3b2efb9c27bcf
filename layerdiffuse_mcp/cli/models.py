"""The command `models`: list them, fetch one, take the published files from a folder, make or test what was fetched.

layerdiffuse-mcp models
layerdiffuse-mcp models prepare NAME
layerdiffuse-mcp models prepare --from /media/usb
layerdiffuse-mcp models convert TransparentVAE.pth
layerdiffuse-mcp models check NAME
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from layerdiffuse_mcp.cli import check, convert
from layerdiffuse_mcp.cli.flags import Commands, settings_of
from layerdiffuse_mcp.errors import ConsentNeeded, InvalidRequest
from layerdiffuse_mcp.families.entries import HubFile
from layerdiffuse_mcp.families.matting import MATTING
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.installed import program
from layerdiffuse_mcp.wording import in_words, printable


def add(commands: Commands) -> None:
    """Add the command and what stands behind it."""
    models = commands.add_parser("models", help="list the models; models prepare NAME fetches one")
    models.add_argument("--subjects", metavar="WORD", help="list what a small base can draw that has this word in it")
    models.set_defaults(run=_list)
    behind = models.add_subparsers(metavar="prepare|convert|check")
    prepare = behind.add_parser("prepare", help="fetch a model and its layer files, or take them from a folder")
    families = " or ".join(FAMILIES)
    prepare.add_argument(
        "name", metavar="NAME", nargs="?", help=f"a model, or {families} for the family's default base"
    )
    prepare.add_argument(
        "--from",
        dest="source",
        metavar="DIR",
        type=Path,
        help="for machines without a network: take the published files from this folder instead, all or those of NAME",
    )
    prepare.add_argument(
        "--task",
        choices=[task.value for task in Task],
        metavar="X",
        help=f"{{{', '.join(task.value for task in Task)}}} only what this task needs; default: all tasks",
    )
    prepare.add_argument("--verify", action="store_true", help="also check the files that are here already")
    prepare.add_argument("--yes", action="store_true", help="agree to licences that forbid commercial use")
    prepare.set_defaults(run=_prepare)
    convert.add(behind)
    check.add(behind)


def _list(options: argparse.Namespace) -> int:
    """List the models and what each can do with the layer files that are here."""
    from rich.table import Table
    from rich.text import Text

    from layerdiffuse_mcp.cli.terminal import OUT
    from layerdiffuse_mcp.hub import catalog
    from layerdiffuse_mcp.hub.controls import adapters, controls
    from layerdiffuse_mcp.hub.libraries import needs
    from layerdiffuse_mcp.hub.vocabulary import vocabulary_of

    settings = settings_of(options)
    table = Table("model", "family", "size", "here", "can do now", "licence", "what it is")
    for entry in catalog.models(settings):
        able = [task.value for task, ready in catalog.tasks(entry, settings).items() if ready] if entry.prepared else []
        cells = (
            entry.name, entry.family or "?", in_words(entry.bytes) if entry.bytes else "",
            "yes" if entry.prepared else "no", ", ".join(able), entry.licence or "",
            entry.description + needs(entry, settings),
        )  # fmt: skip
        table.add_row(*map(Text, cells))
    OUT.print(table)
    print_ = partial(OUT.print, markup=False)
    for network in MATTING.values():
        here = "not here" if catalog.missing(network, settings) else "here"
        size, licence = in_words(network.remote.bytes or 0), network.remote.licence
        description = network.description + needs(network, settings)
        print_(f"cut-out --matting {network.name}: {here}, {size}, {licence}. {description}")
    for lora in catalog.loras(settings):
        where = printable(lora.path) if lora.path else "not here"
        said = [f"say: {lora.trigger}"] if lora.trigger else []
        said += [f"--speed {lora.speed}", lora.family or "", lora.licence or ""] if lora.speed else []
        said += [in_words(lora.remote.bytes)] if lora.remote and lora.remote.bytes else []
        told = f" ({', '.join(filter(None, said))})" if said else ""
        print_(f"LoRA {lora.name}{told}: {where}")
    for control in controls(settings):
        facts = ", ".join(filter(None, (control.family or "fits no base that is known here", control.kind)))
        print_(f"ControlNet {control.name} ({facts}): {printable(control.path)}")
    for adapter in adapters(settings):
        print_(f"IP-Adapter {adapter.name} ({adapter.family or 'fits no base'}): {printable(adapter.path)}")
    for words in filter(None, map(vocabulary_of, catalog.models(settings))):
        if options.subjects is not None:
            print_(f"{words.model} knows: {', '.join(words.matching(options.subjects).subjects) or 'no such subject'}")
        else:
            print_(f"{words.model} knows {len(words.subjects)} subjects: --subjects WORD lists those with it, '' all")
    print_(f"Fetch one: {program()} models prepare NAME (or {', '.join(FAMILIES)})")
    print_(
        f"Your own bases, LoRAs, ControlNets and layer files (.safetensors) go into {printable(settings.models_dir)}"
    )
    return 0


def _prepare(options: argparse.Namespace) -> int:
    """Fetch what a model needs, showing a bar; print each file that was fetched."""
    from layerdiffuse_mcp.cli.terminal import progress_bar, say, warn
    from layerdiffuse_mcp.hub import catalog, download
    from layerdiffuse_mcp.hub.libraries import check_libraries

    if options.source is not None:
        return _take(options)
    if options.name is None:
        raise InvalidRequest(f"Which model? Name one of `{program()} models`, or {' or '.join(FAMILIES)}.")
    settings = settings_of(options)
    task = Task(options.task) if options.task else None
    methods = catalog.methods_for(catalog.find(options.name, settings), task) if task else None
    entry = catalog.find_any(options.name, settings)
    check_libraries(entry, settings)
    if not options.yes:
        _ask_licences(catalog.missing(entry, settings, methods))
    with progress_bar() as on_step:
        done = download.prepare(options.name, settings, on_step, methods=methods, verify=options.verify)
    for note in done.notes:
        warn(note, kind="note")
    for file in done.fetched:
        say(f"fetched {file.file.name}", f"{in_words(file.bytes)} in {file.seconds:.0f} s, {printable(file.path)}")
    fetched = sum(file.bytes for file in done.fetched)
    say(f"{done.name} is ready", f"{in_words(fetched) if fetched else 'nothing had to be'} fetched")
    return 0


def _ask_licences(files: Sequence[HubFile]) -> None:
    """Ask whoever sits here, where files are not free for commercial use; raises ConsentNeeded without a yes."""
    from layerdiffuse_mcp.hub import consent

    if not consent.asks(files, consent.ANY_SIZE):
        return
    print(consent.question(files), "[y/N]", end=" ", flush=True)
    if not sys.stdin.isatty() or input().strip().lower() not in ("y", "yes"):
        raise ConsentNeeded("Nothing was fetched. Answer y, or repeat the command with --yes, to agree to the licence.")


def _take(options: argparse.Namespace) -> int:
    """Take the published files from a folder; print which came, and which are still missing."""
    from layerdiffuse_mcp.cli.terminal import progress_bar, say, warn
    from layerdiffuse_mcp.hub import catalog
    from layerdiffuse_mcp.hub.local_files import take

    settings = settings_of(options)
    if options.task and options.name is None:
        raise InvalidRequest("--task is about a model: name it, too.")
    entry = catalog.find_any(options.name, settings) if options.name else None
    methods = catalog.methods_for(catalog.find(options.name, settings), Task(options.task)) if options.task else None
    with progress_bar() as on_step:
        done = take(options.source, settings, on_step, entry, methods)
    for file in done.taken:
        checked = "as published" if file.proven else "no published checksum to compare with"
        say(f"took {file.path.name}", f"{in_words(file.bytes)}, SHA-256 {file.sha256} ({checked}), {file.path}")
    for name in done.here:
        say("here already", name)
    for problem in done.refused:
        warn(problem, kind="refused")
    for name in done.missing:
        say("missing", name)
    return 1 if done.refused or done.missing else 0
