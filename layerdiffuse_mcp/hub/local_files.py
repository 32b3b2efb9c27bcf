"""Published files from a folder, for machines without a network: looked for by name, checked, put into place.

    done = take(Path("/media/usb"), settings, report)                   # all that are known and not here yet
    done = take(Path("/media/usb"), settings, report, entry)            # those that a model works with

A file is copied and hashed in one pass, and gets its name in the end: what the catalogue sees is whole. Its SHA-256 is
compared with what is known of the published file, and with the name of the content that a link of the model hub's cache
leads to; of most files neither is there, which the result says. Files come into the models folder; the matting
networks' graphs, whose names say nothing, into the hub's cache under their commit.
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from layerdiffuse_mcp.api.outcome import Progress
from layerdiffuse_mcp.errors import DownloadError, ModelError
from layerdiffuse_mcp.families.entries import HubFile, LoraEntry, ModelEntry
from layerdiffuse_mcp.families.matting import MATTING, MattingNetwork
from layerdiffuse_mcp.families.registry import BASES, KNOWN_NAMES, LAYER_FILES, REPACKED
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.hub.download import MARGIN
from layerdiffuse_mcp.hub.fetch import SHA256
from layerdiffuse_mcp.hub.hashes import remember
from layerdiffuse_mcp.hub.headers import HASH_CHUNK, read_header
from layerdiffuse_mcp.hub.versions import file_version
from layerdiffuse_mcp.images.files import open_regular
from layerdiffuse_mcp.installed import program
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import in_words, printable

Report = Callable[[Progress], None]
MOST_FILES = 100_000
"""Files and folders that are looked at."""


@dataclass(frozen=True)
class Taken:
    """A file that is in its place now. `proven`: its checksum is the published one, as far as that is known."""

    path: Path
    bytes: int
    sha256: str
    proven: bool


@dataclass
class Took:
    """What became of the files: taken; here before; refused, with the reason; not found though they are needed."""

    taken: list[Taken] = field(default_factory=list[Taken])
    here: list[str] = field(default_factory=list[str])
    refused: list[str] = field(default_factory=list[str])
    missing: list[str] = field(default_factory=list[str])


def take(
    folder: Path,
    settings: Settings,
    report: Report,
    entry: ModelEntry | LoraEntry | MattingNetwork | None = None,
    methods: Collection[str] | None = None,
) -> Took:
    """Take published files from a folder and the folders below it.

    Args:
        entry: what to take the files of; None: of everything that is published and known here.
        methods: of a base, the layer methods to take files for; all of its family when none are named.

    Raises:
        DownloadError: the folder cannot be read, holds none of the files, there is not enough space, or the models
            folder cannot be written. What is in place by then stays.
    """
    if not os.path.isdir(folder):
        raise DownloadError(f"{printable(folder)} is no folder. Give the one that holds the published files.")
    if isinstance(entry, ModelEntry) and entry.folder:
        raise DownloadError(
            f"{entry.name} is published as a folder: copy that whole, as it is, into {printable(settings.models_dir)}; "
            "there it is a base by its own name."
        )
    wanted = _wanted(entry, methods)
    lacking = [group for group in wanted if not any(catalog.located(remote, settings) for remote in group)]
    found = _found(folder, lacking)
    done = Took(here=[group[0].name for group in wanted if group not in lacking])
    _check_space(list(found.values()), settings.models_dir)
    total, moved = sum(path.stat().st_size for path in found.values()) or 1, 0
    for remote, path in found.items():

        def on_bytes(count: int, name: str = path.name) -> None:
            nonlocal moved
            moved += count
            report(Progress(fraction=min(1.0, moved / total), message=f"copying {name[:80]}"))

        try:
            done.taken.append(_taken(remote, path, settings, on_bytes))
        except ModelError as error:
            done.refused.append(str(error))
        except OSError as error:
            raise DownloadError(
                f"{printable(path)} cannot be copied into {printable(settings.models_dir)} "
                f"({error.strerror or error}). Files that were taken before stay; mend that and repeat this."
            ) from error
    if entry is not None:
        done.missing = _missing(entry, settings, methods)
    elif not (found or done.here):
        names = " and ".join(sorted(LAYER_FILES)[:2])
        raise DownloadError(
            f"{printable(folder)} holds none of the published files. They are looked for by their published names, "
            f"such as {names}; `{program()} models prepare NAME --from {printable(folder)}` lists a model's."
        )
    return done


Group = tuple[HubFile, ...]
"""A published file, and re-packed siblings that do in its place."""


def _wanted(entry: ModelEntry | LoraEntry | MattingNetwork | None, methods: Collection[str] | None) -> list[Group]:
    """The files to look for."""
    if entry is None:
        bases = [base.remote for base in BASES if base.remote]
        files = [*bases, *LAYER_FILES.values(), *(network.remote for network in MATTING.values())]
    elif isinstance(entry, ModelEntry):
        files = catalog.needed(entry, methods)
    else:
        files = [entry.remote] if entry.remote else []
    return [(file, *REPACKED.get(file.name, ())) for file in files]


def _missing(
    entry: ModelEntry | LoraEntry | MattingNetwork, settings: Settings, methods: Collection[str] | None
) -> list[str]:
    """What the model still lacks."""
    if isinstance(entry, ModelEntry):
        return [remote.name for remote in catalog.missing(entry, settings, methods)]
    remote = entry.remote
    return [remote.name] if remote and catalog.located(remote, settings) is None else []


def _found(folder: Path, groups: Sequence[Group]) -> dict[HubFile, Path]:
    """Where one of each group lies: by name, or where that says nothing by size; of a name the nearest to the top."""
    files = [remote for group in groups for remote in group]
    by_name = {remote.name: remote for remote in files if not remote.pinned}
    by_size = {remote.bytes: remote for remote in files if remote.pinned}
    found: dict[HubFile, Path] = {}
    for path in _files(folder):
        remote = by_name.get(path.name)
        if remote is None and path.suffix == ".onnx":
            remote = by_size.get(path.stat().st_size)
        if remote is not None:
            found.setdefault(remote, path)
    first = (next((remote for remote in group if remote in found), None) for group in groups)
    return {remote: found[remote] for remote in first if remote is not None}


def _files(folder: Path) -> Iterator[Path]:
    """Every file below a folder, the nearest to the top first."""
    waiting, seen = [folder], 0
    for here in waiting:  # which grows
        try:
            children = sorted(here.iterdir())
        except OSError:
            continue
        for child in children:
            seen += 1
            if seen > MOST_FILES:
                return
            if os.path.isdir(child) and not child.is_symlink():
                waiting.append(child)
            elif os.path.isfile(child):
                yield child


def _taken(remote: HubFile, source: Path, settings: Settings, on_bytes: Callable[[int], None]) -> Taken:
    """Copy a file into its place, checked.

    Raises:
        ModelError: it is not the published file, or no safetensors file that can be read.
        OSError: it cannot be read or written.
    """
    place = _place(remote, settings)
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{secrets.token_hex(6)}.part")
    try:
        digest = _copied(source, part, on_bytes)
        content = source.resolve().name
        known = [one for one in (remote.sha256, content if SHA256.fullmatch(content) else None) if one]
        for expected in known:
            if not digest.startswith(expected):
                raise DownloadError(
                    f"{printable(source)} is not the published file, or damaged: its SHA-256 begins with {digest[:10]} "
                    f"instead of {expected[:10]}. It was not taken."
                )
        if not remote.pinned:
            _check_header(source, part)
        size = part.stat().st_size
        os.replace(part, place)
    finally:
        part.unlink(missing_ok=True)
    remember(file_version(place), digest)
    return Taken(place, size, digest, bool(known))


def _check_header(source: Path, copy: Path) -> None:
    try:
        read_header(copy, DownloadError)
    except ModelError as error:
        raise DownloadError(f"{str(error).replace(copy.name, source.name)} It was not taken.") from None


def _place(remote: HubFile, settings: Settings) -> Path:
    """Where the catalogue looks for a file."""
    if remote.name in KNOWN_NAMES:
        return settings.models_dir / remote.name
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE) / f"models--{remote.repo.replace('/', '--')}"
    return repository / "snapshots" / (remote.revision or "local") / remote.path


def _copied(source: Path, target: Path, on_bytes: Callable[[int], None]) -> str:
    """Copy a file to the disk; its SHA-256."""
    digest = hashlib.sha256()
    with open_regular(source) as file, open(target, "xb") as copy:
        while chunk := file.read(HASH_CHUNK):
            digest.update(chunk)
            copy.write(chunk)
            on_bytes(len(chunk))
        copy.flush()
        os.fsync(copy.fileno())
    return digest.hexdigest()


def _check_space(files: Sequence[Path], folder: Path) -> None:
    needed = sum(path.stat().st_size for path in files)
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))).free
    if files and needed + MARGIN > free:
        raise DownloadError(
            f"Not enough disk space: {len(files)} files need {in_words(needed)} and {in_words(MARGIN)} to spare, and "
            f"{printable(folder)} has {in_words(free)} free. Nothing was taken. Free some space, or choose another "
            "folder with LAYERDIFFUSE_MODELS_DIR."
        )
