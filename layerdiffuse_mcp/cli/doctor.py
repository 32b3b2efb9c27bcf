"""The command `doctor`: the machine, the folders and the models in words, and a command for whatever is missing."""

import argparse
import contextlib
import os
import platform
import shlex
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from layerdiffuse_mcp.api.layers import COMPOSED
from layerdiffuse_mcp.cli.flags import Commands, settings_of
from layerdiffuse_mcp.errors import LayerDiffuseError
from layerdiffuse_mcp.families.entries import ModelEntry
from layerdiffuse_mcp.families.matting import MATTING
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.installed import install, lacking, program
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import in_words, printable

PACKAGES = ("layerdiffuse-mcp", "torch", "diffusers", "mcp")
PICTURE_SUFFIXES = frozenset(f".{format}" for format in COMPOSED)


class Missing(NamedTuple):
    """Something that could be here, and the command that brings it."""

    what: str
    command: str


def add(commands: Commands) -> None:
    """Add the command."""
    doctor = commands.add_parser("doctor", help="say what this machine has, and how to get what is missing")
    doctor.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from rich.table import Table
    from rich.text import Text

    from layerdiffuse_mcp.cli.terminal import OUT
    from layerdiffuse_mcp.engine.startup import load_engine
    from layerdiffuse_mcp.hub import catalog

    settings = settings_of(options)
    with contextlib.closing(load_engine()(settings)) as engine:
        rows = _machine(engine.status())
    rows["workers"] = _workers(settings)
    rows |= {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}
    rows |= {
        "output folder": f"{printable(settings.output)} ({'writable' if _writable(settings) else 'NOT writable'})",
        "holds": _held(settings.output),
        "readable folders": ", ".join(map(printable, settings.readable)),
        "models folder": printable(settings.models_dir),
        "free disk": in_words(shutil.disk_usage(_existing(settings.models_dir)).free),
    }
    rows |= {entry.name: _forecast(entry, settings) for entry in catalog.models(settings)}
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    OUT.print(table)
    lacking = missing(settings)
    OUT.print("\nMissing:" if lacking else "\nNothing is missing.")
    for one in lacking:
        OUT.print(f"  {one.what}", markup=False)
    if lacking:
        OUT.print("\nTo get it:")
        for command in dict.fromkeys(one.command for one in lacking):
            OUT.print(f"  {command}", markup=False)
    return 0


def missing(settings: Settings) -> list[Missing]:
    """What is not here, the most useful first."""
    from layerdiffuse_mcp.hub import catalog
    from layerdiffuse_mcp.hub.libraries import unmet

    found: list[Missing] = []
    if not _writable(settings):
        folder = printable(settings.output)
        command = "export LAYERDIFFUSE_OUTPUT_DIR=~/Pictures/layerdiffuse"
        found.append(Missing(f"an output folder that can be written: {folder} cannot", command))
    entries = [entry for entry in catalog.models(settings) if entry.name != catalog.POCKET]
    for family, card in FAMILIES.items():
        prepare = f"{program(card.extra)} models prepare"
        bases = [entry for entry in entries if entry.family == family]
        here = [entry for entry in bases if entry.prepared]
        if bases and (extra := unmet(bases[0], settings)):
            what = f"{' and '.join(lacking(extra))}, which bases of the family {card.title} are drawn with"
            found.append(Missing(what, install(extra)))
        if bases and not here:
            what = f"a base of the family {card.title}, with its layer files: {_size(bases[0], settings)}"
            found.append(Missing(what, f"{prepare} {family}"))
        for entry in here:
            if files := catalog.missing(entry, settings):
                what = f"{len(files)} layer files of {entry.name}: {_size(entry, settings)}"
                found.append(Missing(what, f"{prepare} {shlex.quote(entry.name)}"))
                break  # they serve every base of the family
    network = next(iter(MATTING.values()))
    if extra := unmet(network, settings):
        what = f"{' and '.join(lacking(extra))}, which run matting networks, for cut-outs of photographs"
        found.append(Missing(what, install(extra)))
    if not any(catalog.located(network.remote, settings) for network in MATTING.values()):
        what = f"a matting network, for cut-outs of photographs: {in_words(network.remote.bytes or 0)}"
        found.append(Missing(what, f"{program(network.extra)} models prepare {network.name}"))
    return found


def _size(entry: ModelEntry, settings: Settings) -> str:
    from layerdiffuse_mcp.hub import catalog

    return in_words(sum(file.bytes or 0 for file in catalog.missing(entry, settings)))


def _machine(status: Mapping[str, Any]) -> dict[str, str]:
    """What the engine says of the machine, in words."""
    free, total, budget = (in_words(status[f"memory_{name}"]) for name in ("free", "total", "budget"))
    reason = f" ({status['dtype_reason']})" if "dtype_reason" in status else ""
    return {
        "device": str(status["device"]),
        "number format": f"{status['dtype']}{reason}",
        "memory": f"{free} free of {total}; {budget} of it for models",
    }


def _workers(settings: Settings) -> str:
    """How many processes of a server draw at once, and what each has."""
    from layerdiffuse_mcp.backends.places import places

    if settings.backend == "ray":
        return "as many as the Ray cluster has room for; server_status names them"
    found = places(settings)
    if found[0].device is not None:
        return f"{len(found)}, one for each of the devices {', '.join(str(place.device) for place in found)}"
    threads = f", with {found[0].threads} threads each" if found[0].threads else ""
    return f"{len(found)}{threads}"


def _forecast(entry: ModelEntry, settings: Settings) -> str:
    """How a base would be placed in this machine's memory."""
    from layerdiffuse_mcp.engine.model_manager import ModelManager

    try:
        return ModelManager(settings).forecast(entry)
    except LayerDiffuseError as error:
        return str(error)


def _held(output: Path) -> str:
    """How many pictures lie in the output folder, and how much room all takes there."""
    from layerdiffuse_mcp.outputs.folder import contents

    count, size = contents(output, PICTURE_SUFFIXES)
    clean = f"{program()} clean --older-than 30d"
    return f"{count} picture{'s' * (count != 1)}, {in_words(size)}; to delete older ones: {clean}"


def _existing(folder: Path) -> Path:
    return next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))


def _writable(settings: Settings) -> bool:
    place = _existing(settings.output)
    return os.path.isdir(place) and os.access(place, os.W_OK)
