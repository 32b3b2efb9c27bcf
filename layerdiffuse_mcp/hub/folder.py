"""The user's models folder: what lies in it, told by headers alone, and what its `models.toml` adds.

    user_files = read_models_folder(settings.models_dir)
    user_files.bases, user_files.loras              # each by a name of its own
    user_files.file("layer_xl_fg2ble.safetensors")  # a published file, in whichever sub-folder it lies

A `.safetensors` file is a base, a LoRA or a ControlNet by what is in it; below a folder `loras/` it is a LoRA; a folder
with a `model_index.json` is a base in diffusers layout, one whose `config.json` says so a ControlNet. Anything else is
left alone. The optional `models.toml`:

    [[base]]
    name = "my-base"
    path = "bases/my-base.safetensors"      # or repo = "someone/something" and file = "base.safetensors"
    family = "..."                          # needed with repo, else told from the file
    native_size = 1024
    vae = "vae/vae-fp16-fix.safetensors"    # instead of its own; one of that name runs in float16 on a GPU
    description = "What it is good at"
    licence = "openrail++"
    sha256 = "31e35c80fc"                   # of a file of a repo: all of it or its beginning

    [[lora]]
    name = "watercolour"
    path = "loras/wc_v2.safetensors"
    trigger = "watercolour painting"

Headers are read once and again only when a file changes. No torch is imported.
"""

import functools
import json
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from layerdiffuse_mcp.api.fields import explain
from layerdiffuse_mcp.errors import CheckpointError, ModelError
from layerdiffuse_mcp.families.entries import ControlEntry, HubFile, LoraEntry, ModelEntry
from layerdiffuse_mcp.families.registry import BASES, EMBEDDED, FAMILIES, KNOWN_NAMES, FamilyName, folder_family
from layerdiffuse_mcp.hub.headers import read_header, stated_by
from layerdiffuse_mcp.hub.identify import UNKNOWN, Kind, identify
from layerdiffuse_mcp.wording import printable

SUFFIX = ".safetensors"
INDEX, CONFIG = "model_index.json", "config.json"
LIST = "models.toml"
LORA_FOLDERS = frozenset({"lora", "loras"})
RESERVED = frozenset({*FAMILIES, *(entry.name for entry in (*EMBEDDED, *BASES))})
"""Names that no entry of the user's can have."""
MAX_LIST_BYTES = 1_000_000
"""Of models.toml, and of a diffusers folder's JSON files."""
NATIVE_SIZES = range(64, 4097)
REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
LORA_KINDS = frozenset({"lora", "lycoris"})
EntryT = TypeVar("EntryT", ModelEntry, LoraEntry, ControlEntry)
CONTROL, ENCODER = ("_class_name", "ControlNetModel"), ("model_type", "clip_vision_model")
"""What configurations say: of ControlNets as diffusers writes them, of image encoders as transformers does."""
CONTROL_KINDS = ("canny", "depth", "openpose", "lineart", "tile", "scribble", "softedge", "seg", "normal", "mlsd")
"""What ControlNets follow, as their files are called."""


@dataclass(frozen=True)
class ModelsFolder:
    """What a models folder holds."""

    bases: tuple[ModelEntry, ...]
    loras: tuple[LoraEntry, ...]
    controls: tuple[ControlEntry, ...]
    adapters: tuple[ControlEntry, ...]
    encoders: tuple[Path, ...]
    """Folders of the image encoders that IP-Adapters go with."""
    files: Mapping[str, Path]
    """Every `.safetensors` file by its name; of several with one name the one nearest to the top."""

    def file(self, name: str) -> Path | None:
        """The file of that name in the folder or below, if there is one."""
        return self.files.get(name)


class _Row(BaseModel):
    """What a base and a LoRA in models.toml have in common."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    path: Path | None = None
    repo: str | None = None
    file: str | None = Field(None, max_length=500)
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{8,64}$")
    family: FamilyName | None = None
    description: str = Field("", max_length=500)
    licence: str | None = Field(None, max_length=200)

    @model_validator(mode="after")
    def _says_where_it_is(self) -> "_Row":
        if (self.path is None) != (self.repo is not None and self.file is not None) or (
            (self.repo is None) != (self.file is None)
        ):
            raise ValueError("say where it is: either path, or repo and file")
        if not self.name.isprintable():
            raise ValueError("name must be on one line, of characters that can be shown")
        if self.file is not None and not self.file.endswith(SUFFIX):
            raise ValueError(f"file must be a {SUFFIX} file: other formats can run code when they are opened")
        if self.file is not None and not all(part.strip(". ") for part in re.split(r"[/\\]", self.file)):
            raise ValueError("file must be a path inside the repository, such as folder/base.safetensors")
        if self.repo is not None and (not REPO.fullmatch(self.repo) or ".." in self.repo or "--" in self.repo):
            raise ValueError("repo must be the name of a repository on the model hub, such as someone/something")
        return self

    @property
    def remote(self) -> HubFile | None:
        """Its file on the hub, if that is where it is."""
        if self.repo is None or self.file is None:
            return None
        return HubFile(repo=self.repo, path=self.file, sha256=self.sha256, licence=self.licence)

    def here(self, folder: Path) -> Path | None:
        """Its file or folder on this machine, if it is there; `path` counts from the models folder."""
        return _existing(folder, self.path)


class _BaseRow(_Row):
    native_size: int | None = Field(None, ge=NATIVE_SIZES[0], le=NATIVE_SIZES[-1])
    vae: Path | None = None

    @model_validator(mode="after")
    def _names_its_family(self) -> "_BaseRow":
        if self.repo is not None and self.family is None:
            raise ValueError(f"family must be given with repo: {' or '.join(FAMILIES)}")
        return self


class _LoraRow(_Row):
    trigger: str | None = Field(None, max_length=200)


_ROWS: dict[Literal["base", "lora"], type[_Row]] = {"base": _BaseRow, "lora": _LoraRow}


def read_models_folder(folder: Path) -> ModelsFolder:
    """Look through a models folder; one that does not exist is empty.

    Raises:
        ModelError: its models.toml cannot be used; the message says which entry and why.
    """
    bases: list[ModelEntry] = []
    loras: list[LoraEntry] = []
    controls: list[ControlEntry] = []
    adapters: list[ControlEntry] = []
    encoders: list[Path] = []
    files: dict[str, Path] = {}
    for path in _walk(folder):
        if path.is_dir():
            if (path / INDEX).is_file():
                bases += _diffusers_base(path)
            elif _says(path / CONFIG, ENCODER):
                encoders.append(path)
            else:
                controls.append(_control(path, next(iter(sorted(path.glob("*" + SUFFIX))), None), folder))
            continue
        files.setdefault(path.name, path)
        if path.name in KNOWN_NAMES:
            continue
        kind = _kind(path, folder)
        if kind.family:
            bases += _dropped_base(path, kind.family)
        elif kind.name in LORA_KINDS:
            name = printable(path.stem)
            loras.append(LoraEntry(name=name, description=f"Your own LoRA, {printable(path.name)}", path=path))
        elif kind.name == "ip_adapter":
            adapters.append(ControlEntry(name=printable(path.stem), path=path, family=kind.adapts))
        elif kind.name == "controlnet":
            controls.append(_control(path, path, folder))
    rows = _listed(folder / LIST)
    bases = [_listed_base(row, folder) for row in rows if isinstance(row, _BaseRow)] + bases
    loras = [_listed_lora(row, folder) for row in rows if isinstance(row, _LoraRow)] + loras
    return ModelsFolder(
        tuple(_named_apart(bases, folder)),
        tuple(_named_apart(loras, folder)),
        tuple(_named_apart(controls, folder)),
        tuple(_named_apart(adapters, folder)),
        tuple(encoders),
        files,
    )


def _walk(folder: Path) -> Iterator[Path]:
    """Every safetensors file and every diffusers folder, the nearest to the top first, each once."""
    seen: set[Path] = set()
    waiting = [folder] if folder.is_dir() else []
    while waiting:
        here = waiting.pop(0)
        if (real := here.resolve()) in seen:
            continue
        seen.add(real)
        if (here / INDEX).is_file() or _says(here / CONFIG, CONTROL, ENCODER):
            yield here
            continue
        try:
            children = sorted(Path(child.path) for child in os.scandir(here) if not child.name.startswith("."))
        except OSError:
            continue
        yield from (child for child in children if child.suffix.lower() == SUFFIX and child.is_file())
        waiting += [child for child in children if child.is_dir()]


def _says(config: Path, *kinds: tuple[str, str]) -> bool:
    """Whether a network's configuration says one of these, by the name of a field and its value."""
    try:
        return config.is_file() and any(_json(config).get(name) == value for name, value in kinds)
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _control(path: Path, weights: Path | None, folder: Path) -> ControlEntry:
    """The ControlNet in a file or folder, whose weights (the first of them) tell what it fits."""
    family = _kind(weights, folder).adapts if weights else None
    name = printable(path.name.removesuffix(SUFFIX))
    return ControlEntry(
        name=name, path=path, family=family, kind=next((kind for kind in CONTROL_KINDS if kind in name.lower()), None)
    )


def _kind(path: Path, folder: Path) -> Kind:
    if LORA_FOLDERS & {part.lower() for part in path.relative_to(folder).parts[:-1]}:
        return Kind("lora", "a LoRA")
    try:
        facts = path.stat()
        return _kind_of_file(path, facts.st_mtime_ns, facts.st_size)
    except (ModelError, OSError):
        return UNKNOWN


@functools.lru_cache(maxsize=4096)
def _kind_of_file(path: Path, changed: int, size: int) -> Kind:
    """What the file is; `changed` and `size` make a changed file a new question."""
    header = read_header(path)
    return identify(header.shapes, header.metadata)


@functools.lru_cache(maxsize=256)
def _native_size_of_file(path: Path, changed: int) -> int | None:
    """The native size that a file made by this project states in its metadata."""
    size = stated_by(path).get("native_size")
    return size if size in NATIVE_SIZES else None


def _dropped_base(path: Path, family: str) -> list[ModelEntry]:
    """The base in a file; none if it has gone since it was listed."""
    try:
        facts = path.stat()
    except OSError:
        return []
    try:
        size = _native_size_of_file(path, facts.st_mtime_ns)
    except (ModelError, OSError, ValueError, RecursionError):
        size = None
    return [
        ModelEntry(
            name=printable(path.stem),
            family=family,
            native_size=size or FAMILIES[family].native_size,
            path=path,
            bytes=facts.st_size,
            description=f"Your own base, {printable(path.name)}",
        )
    ]


def _diffusers_base(path: Path) -> list[ModelEntry]:
    try:
        pipeline = str(_json(path / INDEX).get("_class_name"))
        spec = folder_family(path.name, pipeline, lambda network: _json(path / network / CONFIG))
        size = spec.native_size_of(_json(path / spec.denoiser / CONFIG))
        taken = sum(file.stat().st_size for file in path.rglob("*" + SUFFIX))
    except (CheckpointError, OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return []  # it is of no use here; naming it in a call still says why
    return [
        ModelEntry(
            name=printable(path.name),
            family=spec.id,
            native_size=size if size in NATIVE_SIZES else spec.native_size,
            path=path,
            bytes=taken,
            description=f"Your own base, the diffusers folder {printable(path.name)}",
        )
    ]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(_text(path))


def _text(path: Path) -> str:
    """A small text file; raises ValueError when it is no UTF-8 or too large for one that people write."""
    with path.open("rb") as file:
        content = file.read(MAX_LIST_BYTES + 1)
    if len(content) > MAX_LIST_BYTES:
        raise ValueError(f"it is larger than {MAX_LIST_BYTES // 1000} kB")
    return content.decode("utf-8")


def _existing(folder: Path, named: Path | None) -> Path | None:
    """The file or folder that models.toml names, if it is there."""
    if named is None:
        return None
    try:
        path = folder / named.expanduser()
        return path if path.is_file() or path.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # too long a name, a NUL, the home of a user who is none
        return None


def _listed(path: Path) -> tuple[_Row, ...]:
    try:
        facts = path.stat()
    except OSError:
        return ()
    return _read_list(path, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=8)
def _read_list(path: Path, changed: int, size: int) -> tuple[_Row, ...]:
    try:
        tables = tomllib.loads(_text(path))
    except FileNotFoundError:  # it went meanwhile
        return ()
    except (ValueError, OSError, RecursionError) as error:
        why = printable(str(error), 300)
        raise ModelError(f"{printable(path)} cannot be read: {why}. Correct it, or move it away.") from error
    rows: list[_Row] = []
    unknown = [table for table in tables if table not in _ROWS]
    if unknown or not all(isinstance(rows_of, list) for rows_of in tables.values()):
        raise ModelError(f"{printable(path)} may hold [[base]] and [[lora]] tables only. Correct it, or move it away.")
    for table, kind in _ROWS.items():
        for number, row in enumerate(tables.get(table, ()), start=1):
            try:
                rows.append(kind.model_validate(row))
            except ValidationError as error:
                why = printable(explain(error), 500)
                raise ModelError(f"{printable(path)}, {table} {number}: {why} Correct it, or move it away.") from None
    names = Counter((type(row), row.name) for row in rows)
    taken = [name for (_, name), count in names.items() if count > 1 or name in RESERVED]
    if taken:
        raise ModelError(
            f"{printable(path)}: the name {printable(taken[0])} is taken already. Choose another for your entry."
        )
    return tuple(rows)


def _listed_base(row: _BaseRow, folder: Path) -> ModelEntry:
    path = row.here(folder)
    found = (_diffusers_base(path) if path.is_dir() else _single_base(path)) if path else []
    facts = found[0] if found else None
    family = row.family or (facts.family if facts else None)
    missing = "" if path or row.remote else f" (there is no file {printable(str(row.path), 200)})"
    return ModelEntry(
        name=row.name,
        family=family,
        native_size=row.native_size or (facts.native_size if facts else FAMILIES[family].native_size if family else 0),
        licence=row.licence,
        path=path,
        remote=row.remote,
        bytes=facts.bytes if facts else None,
        vae=row.vae and (_existing(folder, row.vae) or folder / row.vae),
        description=(row.description or "Your own base") + missing,
        aliases=(path.stem,) if path else (row.remote.name.removesuffix(SUFFIX),) if row.remote else (),
    )


def _single_base(path: Path) -> list[ModelEntry]:
    kind = _kind(path, path.parent)
    return _dropped_base(path, kind.family) if kind.family else []


def _listed_lora(row: _LoraRow, folder: Path) -> LoraEntry:
    return LoraEntry(
        name=row.name,
        description=row.description,
        trigger=row.trigger,
        licence=row.licence,
        family=row.family,
        path=row.here(folder),
        remote=row.remote,
    )


def _named_apart(entries: list[EntryT], folder: Path) -> Iterator[EntryT]:
    """The entries without a file that an earlier one has, no two of one name: a later one is named by its path."""
    paths: set[Path] = set()
    names = set(RESERVED)
    for entry in entries:
        real = entry.path.resolve() if entry.path else None
        if real in paths:
            continue
        if real is not None:
            paths.add(real)
        if entry.name in names and entry.path is not None and entry.path.is_relative_to(folder):
            below = printable(entry.path.relative_to(folder).as_posix().removesuffix(SUFFIX))
            entry = entry.model_copy(update={"name": f"own/{below}" if below in names else below})
        names.add(entry.name)
        yield entry
