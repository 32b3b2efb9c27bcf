"""The command `sanity-check`: what the authors of LayerDiffuse publish, drawn here, to hold beside their pictures.

    layerdiffuse-mcp sanity-check -o out/
    layerdiffuse-mcp sanity-check --texts mine.txt      # any parameter texts, an empty line between two

Each text is drawn with the base that it names, found by its name or by its hash. Those whose base or layer files are
not on this machine are listed, with what brings them.
"""

import argparse
import contextlib
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from layerdiffuse_mcp.api.outcome import EncodedFile
from layerdiffuse_mcp.api.plan import Planned
from layerdiffuse_mcp.cli.flags import Commands, add_output, settings_of
from layerdiffuse_mcp.errors import InvalidRequest, ModelNotFound
from layerdiffuse_mcp.families.entries import ModelEntry
from layerdiffuse_mcp.installed import program
from layerdiffuse_mcp.recipes.infotext import Infotext
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import printable, short

SHEET = "sanity-check.png"


class Check(NamedTuple):
    """A text that can be drawn, with which base, and what is to be said of that base."""

    number: int
    info: Infotext
    base: ModelEntry
    planned: Planned
    other: str
    """Why the base is not the text's; empty where it is, or where the text names no hash."""

    @property
    def title(self) -> str:
        """The text in a few words."""
        return _title(self.number, self.info)


class Lacking(NamedTuple):
    """A text that cannot be drawn here."""

    title: str
    why: str
    command: str


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "sanity-check", help="draw the published sanity checks on one sheet, to compare with their pictures"
    )
    parser.add_argument(
        "--texts",
        metavar="FILE",
        help="other A1111 parameter texts instead, with an empty line between two; - reads stdin",
    )
    add_output(parser)
    parser.set_defaults(run=_sanity_check)


def _sanity_check(options: argparse.Namespace) -> int:
    from layerdiffuse_mcp.cli.drawing import read_text
    from layerdiffuse_mcp.cli.terminal import OUT, say
    from layerdiffuse_mcp.recipes.sanity import PUBLISHED_AT, published, texts_in

    settings = settings_of(options)
    texts = texts_in(read_text(options.texts)) if options.texts else published()
    if not texts:
        raise InvalidRequest("There is no parameter text. Give some, with an empty line between two.")
    checks, lacking = _sorted(texts, settings)
    if checks:
        say("contact sheet", printable(_drawn(checks, settings)))
        if not options.texts:
            say("compare with", PUBLISHED_AT)
    else:
        say("nothing drawn", f"none of the {len(texts)} has its models on this machine")
    for one in lacking:
        say("missing", f"{one.title}: {one.why}")
    if lacking:
        OUT.print("\nTo get what is missing:")
        for command in dict.fromkeys(one.command for one in lacking):
            OUT.print(f"  {command}", markup=False)
    return 0 if checks else 1


def _sorted(texts: Sequence[str], settings: Settings) -> tuple[list[Check], list[Lacking]]:
    """Those texts that can be drawn with what is here, and the others."""
    from layerdiffuse_mcp.jobs.planner import plan
    from layerdiffuse_mcp.recipes import infotext
    from layerdiffuse_mcp.recipes.a1111 import request_from
    from layerdiffuse_mcp.recipes.recipe import BASE

    checks: list[Check] = []
    lacking: list[Lacking] = []
    for number, text in enumerate(texts, start=1):
        info = infotext.parse(text)
        base, other = _base(info, settings)
        if base is None:
            lacking.append(_unknown(number, info, settings))
            continue
        changes = {"model": base.name, "drawn_with": {BASE: info.model_hash}}
        try:
            planned = plan(request_from(info, changes, settings), settings)
        except ModelNotFound as error:
            command = f"{program()} models prepare {shlex.quote(base.name)}"
            lacking.append(Lacking(_title(number, info), str(error).partition(". ")[0] + ".", command))
        except InvalidRequest as error:
            raise InvalidRequest(f"Text {_title(number, info)}: {error}") from None
        else:
            checks.append(Check(number, info, base, planned, other))
    return checks, lacking


def _base(info: Infotext, settings: Settings) -> tuple[ModelEntry | None, str]:
    """The base that a text names, and what is to be said of it where its content is another.

    One that is here and has the text's hash goes before one that is called so.
    """
    from layerdiffuse_mcp.hub import catalog

    named = None
    for name in (info.model, info.model_hash):
        with contextlib.suppress(ModelNotFound):
            named = named or (catalog.find(name, settings) if name else None)
    if not info.model_hash:
        return named, ""
    expected = info.model_hash.lower()
    here = [entry for entry in catalog.models(settings) if entry.path and entry.name != catalog.POCKET]
    ordered = sorted(here, key=lambda entry: named is None or entry.name != named.name)
    found = dict[str, str]()
    for entry in ordered:
        if named is None or named.path is None or entry.family == named.family:
            found[entry.name] = _hash(entry)
            if found[entry.name].startswith(expected):
                return entry, ""
    if named is None or named.path is None:
        return named, ""
    return named, f"another file: its hash is {found[named.name][:10] or 'not known'} instead of {expected[:10]}"


def _hash(entry: ModelEntry) -> str:
    """SHA-256 of a base's file, read once and then remembered; empty for a folder."""
    from layerdiffuse_mcp.api.outcome import Progress
    from layerdiffuse_mcp.cli.terminal import progress_bar
    from layerdiffuse_mcp.hub.hashes import remembered_sha256
    from layerdiffuse_mcp.hub.versions import file_version

    if entry.path is None or not os.path.isfile(entry.path):
        return ""
    version, read = file_version(entry.path), 0
    with progress_bar() as on_step:

        def beat(count: int) -> None:
            nonlocal read
            read += count
            on_step(Progress(fraction=read / version.size, message=f"reading {entry.name} for its checksum, once"))

        return remembered_sha256(version, beat) or ""


def _unknown(number: int, info: Infotext, settings: Settings) -> Lacking:
    """What to say of a base that no catalogue has."""
    name = short(info.model or info.model_hash or "its base")
    digest = f" (hash {short(info.model_hash)})" if info.model_hash else ""
    folder = printable(settings.models_dir)
    return Lacking(
        _title(number, info),
        f"the base {name}{digest} is not on this machine, and not published where this program may fetch it.",
        f"# put {name}.safetensors into {folder}",
    )


def _drawn(checks: Sequence[Check], settings: Settings) -> Path:
    """Draw all of them and put their pictures on one sheet; its path."""
    from layerdiffuse_mcp.cli.drawing import drawn, fetch
    from layerdiffuse_mcp.cli.terminal import say, warn
    from layerdiffuse_mcp.engine.startup import load_engine
    from layerdiffuse_mcp.images.contact import contact_sheet
    from layerdiffuse_mcp.images.read import read_picture
    from layerdiffuse_mcp.outputs.writer import save

    shown: list[tuple[Path, str]] = []
    with contextlib.closing(load_engine()(settings)) as engine:
        for check in checks:
            say("text", check.title)
            if check.other:
                warn(f"{check.base.name} is {check.other}. A difference from the published picture proves nothing.")
            fetch(check.planned, settings)
            pictures = drawn(check.planned, engine, settings)
            note = f", {check.other}" if check.other else ""
            for number, picture in enumerate(pictures, start=1):
                which = f" ({number} of {len(pictures)})" if len(pictures) > 1 else ""
                shown.append((picture, f"{check.title}{which}. {check.base.name}{note}"))
    pictures = [(read_picture(path, settings.max_pixels).rgba, caption) for path, caption in shown]
    return save(settings.output, [EncodedFile(name=SHEET, data=contact_sheet(pictures))])[0]


def _title(number: int, info: Infotext) -> str:
    own = [text for text in (info.foreground_prompt, info.background_prompt, info.blended_prompt) if text]
    return f"{number}: {short(' / '.join(own) or info.prompt.replace(chr(10), ' '))}"
