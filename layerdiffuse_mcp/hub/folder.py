"""The user's models folder: what lies in it, told by headers alone, and what its `models.toml` adds.

    user_files = read_models_folder(settings.models_dir)
    user_files.bases, user_files.loras              # each by a name of its own
    user_files.file("layer_xl_fg2ble.safetensors")  # a published file, in whichever sub-folder it lies

A `.safetensors` file is a base, a LoRA or a ControlNet by what is in it; below a folder `loras/` it is a LoRA; a folder
with a `model_index.json` is a base in diffusers layout, one whose `config.json` says so a ControlNet. Anything else is
left alone. What `models.toml` says: see `hub/models_toml.py`.

Headers are read once and again only when a file changes. No torch is imported.
"""

import functools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from layerdiffuse_mcp.errors import CheckpointError, ModelError
from layerdiffuse_mcp.families.entries import ControlEntry, LoraEntry, ModelEntry
from layerdiffuse_mcp.families.registry import FAMILIES, KNOWN_NAMES, folder_family
from layerdiffuse_mcp.hub.headers import read_header, stated_by
from layerdiffuse_mcp.hub.identify import UNKNOWN, Kind, identify
from layerdiffuse_mcp.hub.models_toml import (
    NATIVE_SIZES,
    RESERVED,
    SUFFIX,
    BaseRow,
    LoraRow,
    existing,
    listed_in,
    small_text,
)
from layerdiffuse_mcp.wording import printable

INDEX, CONFIG = "model_index.json", "config.json"
LIST = "models.toml"
LORA_FOLDERS = frozenset({"lora", "loras"})
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


def read_models_folder(folder: Path) -> ModelsFolder:
    """Look through a models folder; one that does not exist, or cannot be read (`why_unread`), is empty.

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
        if os.path.isdir(path):
            if os.path.isfile(path / INDEX):
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
    rows = listed_in(folder / LIST)
    bases = [_listed_base(row, folder) for row in rows if isinstance(row, BaseRow)] + bases
    loras = [_listed_lora(row, folder) for row in rows if isinstance(row, LoraRow)] + loras
    return ModelsFolder(
        tuple(_named_apart(bases, folder)),
        tuple(_named_apart(loras, folder)),
        tuple(_named_apart(controls, folder)),
        tuple(_named_apart(adapters, folder)),
        tuple(encoders),
        files,
    )


def why_unread(folder: Path) -> str | None:
    """What keeps a models folder from being looked through, in the system's words; None where it can or is missing."""
    try:
        os.scandir(folder).close()
    except FileNotFoundError:
        return None
    except OSError as error:
        return error.strerror or str(error)
    return None


def _walk(folder: Path) -> Iterator[Path]:
    """Every safetensors file and every diffusers folder, the nearest to the top first, each once."""
    seen: set[str] = set()
    waiting = [folder] if os.path.isdir(folder) else []
    while waiting:
        here = waiting.pop(0)
        if (real := os.path.realpath(here)) in seen:
            continue
        seen.add(real)
        if os.path.isfile(here / INDEX) or _says(here / CONFIG, CONTROL, ENCODER):
            yield here
            continue
        try:
            children = sorted(Path(child.path) for child in os.scandir(here) if not child.name.startswith("."))
        except OSError:
            continue
        yield from (child for child in children if child.suffix.lower() == SUFFIX and os.path.isfile(child))
        waiting += [child for child in children if os.path.isdir(child)]


def _says(config: Path, *kinds: tuple[str, str]) -> bool:
    """Whether a network's configuration says one of these, by the name of a field and its value."""
    try:
        return os.path.isfile(config) and any(_json(config).get(name) == value for name, value in kinds)
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
        index = _json(path / INDEX)
        spec = folder_family(path.name, str(index.get("_class_name")), lambda network: _json(path / network / CONFIG))
        size = spec.native_size_of(_json(path / spec.denoiser / CONFIG))
        taken = sum(file.stat().st_size for file in path.rglob("*" + SUFFIX))
        sigmas = index.get("sample_sigmas")  # as diffusers writes what a base's makers set, for as many steps
        advice = {"steps": len(sigmas)} if sigmas else {}
    except (CheckpointError, OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return []  # it is of no use here; naming it in a call still says why
    return [
        ModelEntry(
            name=printable(path.name),
            family=spec.id,
            native_size=size if size in NATIVE_SIZES else spec.native_size,
            licence=spec.licence,
            advice=advice,
            path=path,
            bytes=taken,
            description=f"Your own base, the diffusers folder {printable(path.name)}",
        )
    ]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(small_text(path))


def _listed_base(row: BaseRow, folder: Path) -> ModelEntry:
    path = row.here(folder)
    found = (_diffusers_base(path) if os.path.isdir(path) else _single_base(path)) if path else []
    facts = found[0] if found else None
    family = row.family or (facts.family if facts else None)
    missing = "" if path or row.remote else f" (there is no file {printable(str(row.path), 200)})"
    return ModelEntry(
        name=row.name,
        family=family,
        native_size=row.native_size or (facts.native_size if facts else FAMILIES[family].native_size if family else 0),
        licence=row.licence or (facts.licence if facts else None),
        advice=facts.advice if facts else {},
        path=path,
        remote=row.remote,
        bytes=facts.bytes if facts else None,
        vae=row.vae and (existing(folder, row.vae) or folder / row.vae),
        description=(row.description or "Your own base") + missing,
        aliases=(path.stem,) if path else (row.remote.name.removesuffix(SUFFIX),) if row.remote else (),
    )


def _single_base(path: Path) -> list[ModelEntry]:
    kind = _kind(path, path.parent)
    return _dropped_base(path, kind.family) if kind.family else []


def _listed_lora(row: LoraRow, folder: Path) -> LoraEntry:
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
    paths: set[str] = set()
    names = set(RESERVED)
    for entry in entries:
        real = os.path.realpath(entry.path) if entry.path else None
        if real in paths:
            continue
        if real is not None:
            paths.add(real)
        if entry.name in names and entry.path is not None and entry.path.is_relative_to(folder):
            below = printable(entry.path.relative_to(folder).as_posix().removesuffix(SUFFIX))
            entry = entry.model_copy(update={"name": f"own/{below}" if below in names else below})
        names.add(entry.name)
        yield entry
