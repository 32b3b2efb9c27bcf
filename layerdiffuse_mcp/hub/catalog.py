"""Which models there are, where they come from, and where they lie on this machine.

Three sources: the pocket model inside the package, the published files (`official.py`), and what a user keeps in the
models folder (`folder.py`). A published file is looked for there and in the model hub's cache, nowhere else; that it
is there is all that "prepared" means. Nothing here fetches anything or imports torch.

    entry = find("realvisxl-v4", settings)             # also by alias: a file's stem, A1111's short hash
    path = layer_file(entry, "layer_xl_transparent_attn.safetensors", settings)
    lora("watercolour", settings)
"""

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path

from layerdiffuse_mcp.api.fields import near
from layerdiffuse_mcp.errors import InvalidRequest, ModelNotFound
from layerdiffuse_mcp.families.entries import HubFile, LoraEntry, ModelEntry, ModelFiles
from layerdiffuse_mcp.families.matting import MATTING, MattingNetwork
from layerdiffuse_mcp.families.registry import (
    BASES,
    EMBEDDED,
    FAMILIES,
    LAYER_FILES,
    LORAS,
    REPACKED,
    ROUTES,
    families_for,
)
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.hub.folder import ModelsFolder, read_models_folder
from layerdiffuse_mcp.hub.libraries import unmet
from layerdiffuse_mcp.hub.licences import is_free, layer_licences
from layerdiffuse_mcp.hub.places import folder_here, indexed, on_disk
from layerdiffuse_mcp.hub.remedies import by_hand, cannot, command, method_of, source, task_of, terms, to_convert
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import in_words, printable

POCKET = "pocket"
AUTO = "auto"


def pocket_folder() -> Path:
    """The folder of the embedded model inside the installed package."""
    return Path(str(resources.files("layerdiffuse_mcp") / POCKET))


def models(settings: Settings) -> list[ModelEntry]:
    """All models there are to choose from: the embedded one, the published bases, the user's own.

    Raises:
        ModelError: the user's models.toml cannot be used.
    """
    return _models(read_models_folder(settings.models_dir))


def loras(settings: Settings) -> list[LoraEntry]:
    """The user's LoRAs and the published ones; raises as `models` does.

    A file of the user's that has a published one's name is taken for it.
    """
    user_files = read_models_folder(settings.models_dir)
    own = {entry.name: _located_lora(entry, user_files) for entry in user_files.loras}
    published = [_located_lora(entry, user_files, own.pop(entry.name, None)) for entry in LORAS]
    return [*own.values(), *published]


def find(name: str | None, settings: Settings) -> ModelEntry:
    """The model of that name or alias, or the default one.

    A family's name means its default base: one that is on this machine if there is any, else the first to fetch.

    Raises:
        ModelNotFound: no model has that name; the near names are listed.
        ModelError: the user's models.toml cannot be used.
    """
    user_files = read_models_folder(settings.models_dir)
    entries = _models(user_files)
    wanted = name or settings.model
    if wanted == AUTO:
        return next((entry for entry in entries if entry.name != POCKET and _is_default(entry, user_files)), entries[0])
    if wanted in FAMILIES:
        family = [entry for entry in entries if entry.family == wanted and entry.name != POCKET]
        if family:
            return next((entry for entry in family if entry.prepared), family[0])
        raise ModelNotFound(
            f"There is no base of the family {wanted} on this machine, and none that is known to be published. "
            f"Put one into {printable(settings.models_dir)}."
        )
    for spelled in (str, str.casefold):
        for entry in entries:
            if spelled(wanted) in (spelled(entry.name), *map(spelled, _aliases(entry))):
                return entry
    if where := _named_in(wanted, user_files):
        raise ModelNotFound(f"{printable(wanted, 80)} is no base model: {where}. It is here, and needs no preparing.")
    known = near(wanted, [entry.name for entry in entries])
    raise ModelNotFound(
        f"There is no model '{printable(wanted, 80)}'. {known} {_real_bases(entries, settings)}".rstrip()
    )


def _named_in(name: str, user_files: ModelsFolder) -> str:
    """Where a file of the user's is named that is no base; nothing where there is none of that name."""
    places = {
        "as a ControlNet it is named in options.control": user_files.controls,
        "as an IP-Adapter it is named in options.reference": user_files.adapters,
        "as a LoRA it is named in options.loras": user_files.loras,
    }
    wanted = name.casefold()
    return next((where for where, known in places.items() if wanted in (one.name.casefold() for one in known)), "")


def _real_bases(entries: Sequence[ModelEntry], settings: Settings) -> str:
    """Of each family whose bases have to be fetched: what to prepare, and how large it is."""
    ways: list[str] = []
    for family in FAMILIES:
        bases = [entry for entry in entries if entry.family == family and entry.name != POCKET]
        useful = any(map(_from_words, FAMILIES[family].routes)) and all(map(is_free, bases))
        if bases and useful and not any(entry.prepared for entry in bases):
            size = sum(file.bytes or 0 for file in missing(bases[0], settings))
            ways.append(f"prepare_model with model='{family}' ({in_words(size)})")
    return f"Larger pictures need a real base: {' or '.join(ways)}." if ways else ""


def find_any(name: str | None, settings: Settings) -> ModelEntry | LoraEntry | MattingNetwork:
    """The model of that name or alias, else the LoRA or matting network of that name; raises as `find` does."""
    try:
        return find(name, settings)
    except ModelNotFound:
        if name in MATTING:
            return MATTING[name]
        with suppress(ModelNotFound):
            return find_lora(name or "", settings)
        raise


def lora(name: str, settings: Settings) -> Path:
    """Where the LoRA of that name, or of that file name, lies on this machine.

    Raises:
        ModelNotFound: there is none, the near names are listed; or it has not been fetched yet.
        ModelError: the user's models.toml cannot be used.
    """
    entry = find_lora(name, settings)
    if entry.path is not None:
        return entry.path
    if entry.remote is not None:
        raise ModelNotFound(
            f"The LoRA {entry.name} is not on this machine. Fetch it: {command(entry.name)} "
            f"({source(entry.remote)}, {terms(entry.licence)}). {_without(entry, settings)}"
        )
    raise ModelNotFound(f"The LoRA {entry.name} is listed in models.toml, but its file is not there. Correct its path.")


def _without(entry: LoraEntry, settings: Settings) -> str:
    """What else can be done where a LoRA is not here."""
    published = entry.name in {lora.name for lora in LORAS}
    put = f"Or put the file into {printable(settings.models_dir / 'loras')} as {entry.name}.safetensors."
    hand = put if published or entry.remote is None else by_hand(entry.remote, settings)
    return f"{hand} Or leave speed or the LoRA out, and set steps." if entry.speed else hand


def find_lora(name: str, settings: Settings) -> LoraEntry:
    """The LoRA of that name or file name; raises as `lora` does."""
    entries = loras(settings)
    for spelled in (str, str.casefold):
        for entry in entries:
            if spelled(name) in (spelled(entry.name), *((spelled(entry.path.stem),) if entry.path else ())):
                return entry
    known = near(name, [entry.name for entry in entries])
    folder = printable(settings.models_dir / "loras")
    raise ModelNotFound(f"There is no LoRA '{printable(name, 80)}'. {known} LoRAs (.safetensors) go into {folder}.")


def matting_file(network: MattingNetwork, settings: Settings) -> Path:
    """Where the graph of a matting network lies on this machine; raises ModelNotFound as `layer_file` does."""
    path = located(network.remote, settings)
    if path is None:
        raise ModelNotFound(
            f"The matting network {network.name} is not on this machine. Fetch it: {command(network.name)} "
            f"({source(network.remote)}, licence {network.remote.licence}). A picture before one colour, or one whose "
            "empty scene is at hand, needs none: give background."
        )
    return path


def layer_file(entry: ModelEntry, name: str, settings: Settings, methods: Collection[str] = ()) -> Path:
    """Where the layer or transparency file `name`, or a re-packed sibling of it, lies on this machine.

    methods: all those that are to draw, for which the message says what to fetch.

    Raises:
        ModelNotFound: it is not there; the message says how large it is and how to prepare it.
    """
    path = _layer_path(entry, name, read_models_folder(settings.models_dir))
    if path is None:
        raise ModelNotFound(_absent(entry, name, settings, methods))
    return path


def model_files(entry: ModelEntry, settings: Settings, loras: Collection[str] = ()) -> ModelFiles:
    """Where a base, its layer and transparency files, and LoRAs lie, found in one look at the models folder.

    Raises:
        ModelNotFound: the base or a LoRA is not there. Layer files may be absent: see `ModelFiles.layer`.
    """
    base, user_files = base_file(entry, settings), read_models_folder(settings.models_dir)
    found = {name: _layer_path(entry, name, user_files) for name in _layer_names(entry)}
    return ModelFiles(
        base=base,
        vae=entry.vae,
        layers={name: path for name, path in found.items() if path is not None},
        absent={name: _absent(entry, name, settings) for name, path in found.items() if path is None},
        loras={name: lora(name, settings) for name in loras},
    )


def licences(entry: ModelEntry, settings: Settings) -> dict[str, str]:
    """The licences that are known of what can be drawn with on a base, by the names of the files: its layer and
    transparency files, and the LoRAs here.
    """
    own = {row.path.name: row.licence for row in loras(settings) if row.path and row.licence}
    return {**layer_licences(entry), **own}


def base_file(entry: ModelEntry, settings: Settings, methods: Collection[str] = ()) -> Path:
    """Where the base itself lies; takes `methods` and raises ModelNotFound as `layer_file` does."""
    if entry.path is not None:
        return entry.path
    if not entry.published:
        raise ModelNotFound(
            f"The model {entry.name} is listed in models.toml, but its file is not there. Correct its path there."
        )
    folder = printable(settings.models_dir)
    hand = by_hand(entry.remote, settings) if entry.remote else f"Or put the repository's folder into {folder}."
    raise ModelNotFound(
        f"The model {entry.name} is not on this machine. Fetch it with what it needs: "
        f"{_fetching(entry, settings, methods)}, {terms(entry.licence)}). {hand}"
    )


def tasks(entry: ModelEntry, settings: Settings) -> dict[Task, bool]:
    """What the base's family can do, and whether every layer file and library for it is on this machine."""
    found = _tasks(entry, read_models_folder(settings.models_dir))
    return dict.fromkeys(found, False) if unmet(entry, settings) else found


def methods_for(entry: ModelEntry, task: Task) -> tuple[str, ...]:
    """The methods that do `task` with this base.

    Raises:
        InvalidRequest: its family does not do the task.
    """
    for family in families_for(task):
        if family == entry.family:
            return ROUTES[task, family]
    raise InvalidRequest(f"{cannot(entry, task)}. Name a model of the family {' or '.join(families_for(task))}.")


def needed(entry: ModelEntry | LoraEntry | MattingNetwork, methods: Collection[str] | None = None) -> list[HubFile]:
    """The published files that a base works with: itself, its transparency files, the layer files of `methods`.

    All methods of its family when none are given. Files that serve more come first, so that a download that is
    broken off is already of use. A LoRA or a matting network is one file.
    """
    if not isinstance(entry, ModelEntry):
        return [entry.remote] if entry.remote else []
    return [*dict.fromkeys(file.fetched for file in _used(entry, methods))]


def missing(
    entry: ModelEntry | LoraEntry | MattingNetwork, settings: Settings, methods: Collection[str] | None = None
) -> list[HubFile]:
    """Those of the `needed` files that have to be fetched: neither they nor a sibling of theirs are here."""
    user_files = read_models_folder(settings.models_dir)
    if not isinstance(entry, ModelEntry):
        return [remote for remote in needed(entry) if not on_disk(remote, user_files)]

    def is_here(remote: HubFile) -> bool:
        layer = remote.name in LAYER_FILES
        here = bool(_layer_path(entry, remote.name, user_files)) if layer else bool(entry.folder and entry.path)
        return here or on_disk(remote.fetched, user_files) is not None

    return [*dict.fromkeys(remote.fetched for remote in _used(entry, methods) if not is_here(remote))]


def unconverted(entry: ModelEntry, settings: Settings, methods: Collection[str] | None = None) -> list[str]:
    """Of each pickle of which no file that a base works with has been made yet, a sentence that says how."""
    user_files = read_models_folder(settings.models_dir)
    files = {file.fetched: file for file in _used(entry, methods) if file.converted_from}
    return [
        to_convert(file, on_disk(pickle, user_files))
        for pickle, file in files.items()
        if not _layer_path(entry, file.name, user_files)
    ]


def _used(entry: ModelEntry, methods: Collection[str] | None) -> list[HubFile]:
    """The files that a base and its `methods` work with."""
    if entry.name == POCKET:
        return []
    return [*entry.published, *indexed(entry.folder), *(LAYER_FILES[name] for name in _layer_names(entry, methods))]


def located(remote: HubFile, settings: Settings) -> Path | None:
    """Where a published file lies on this machine: in the models folder or in the model hub's cache."""
    return on_disk(remote, read_models_folder(settings.models_dir))


def _fetching(entry: ModelEntry, settings: Settings, methods: Collection[str]) -> str:
    """How to fetch what a base lacks to draw by `methods`, how much that is and from where; a bracket stays open."""
    task = task_of(entry.family or "", methods)
    files = missing(entry, settings, ROUTES[task, entry.family or ""] if task else None)
    return f"{command(entry.name, task, all_files=task is None)} ({source(*files)}"


def _absent(entry: ModelEntry, name: str, settings: Settings, methods: Collection[str] = ()) -> str:
    """That a layer file is not here, how large it is and how to fetch it."""
    method = method_of(name)
    what = f" (the layer file for '{method.title}')" if method else ""
    remote = LAYER_FILES[name]
    drawing = methods or ([method.id] if method else ())
    fetch = f"Fetch it: {_fetching(entry, settings, drawing)}). {by_hand(remote, settings)}"
    if remote.converted_from:
        pickle = located(remote.fetched, settings)
        fetch = to_convert(remote, pickle) + ("" if pickle else f" {command(entry.name)} fetches that.")
    return f"{name}{what} is not on this machine. {fetch}"


def _models(user_files: ModelsFolder) -> list[ModelEntry]:
    pocket = pocket_folder() / "pocket.safetensors"
    embedded = EMBEDDED[0].model_copy(update={"path": pocket, "bytes": pocket.stat().st_size})
    official = [_located(entry, user_files) for entry in BASES]
    return [embedded, *official, *(_located(own, user_files) for own in user_files.bases)]


def _aliases(entry: ModelEntry) -> Sequence[str]:
    return (*entry.aliases, entry.path.name) if entry.path else entry.aliases


def _is_default(entry: ModelEntry, user_files: ModelsFolder) -> bool:
    """Whether it may be drawn with where none is named: it draws something from words, and commercial use is free."""
    able = (ready and _from_words(task) for task, ready in _tasks(entry, user_files).items())
    return entry.prepared and is_free(entry) and any(able)


def _from_words(task: Task) -> bool:
    return task is not Task.DECOMPOSE


def _tasks(entry: ModelEntry, user_files: ModelsFolder) -> dict[Task, bool]:
    if entry.family is None:
        return {}
    card = FAMILIES[entry.family]
    here = {name: _layer_path(entry, name, user_files) is not None for name in card.layer_files()}
    return {task: all(here[name] for name in card.layer_files(route)) for task, route in card.routes.items()}


def _layer_names(entry: ModelEntry, methods: Collection[str] | None = None) -> Sequence[str]:
    if entry.family is None:
        return ()
    card = FAMILIES[entry.family]
    return card.layer_files([name for name in card.methods if methods is None or name in methods])


def _layer_path(entry: ModelEntry, name: str, user_files: ModelsFolder) -> Path | None:
    if entry.name == POCKET:
        path = pocket_folder() / name
        return path if os.path.isfile(path) else None
    for remote in (LAYER_FILES[name], *REPACKED[name]):
        path = on_disk(remote, user_files)
        if path is not None:
            return path
    return None


def _located(entry: ModelEntry, user_files: ModelsFolder) -> ModelEntry:
    with suppress(OSError):  # it may go meanwhile
        if entry.folder and entry.path is None:
            folder = folder_here(entry)
            size = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) if folder else entry.bytes
            return entry.model_copy(update={"path": folder, "bytes": size})
        path = on_disk(entry.remote, user_files) if entry.remote and entry.path is None else None
        return entry.model_copy(update={"path": path, "bytes": path.stat().st_size}) if path else entry
    return entry


def _located_lora(entry: LoraEntry, user_files: ModelsFolder, same: LoraEntry | None = None) -> LoraEntry:
    path = same.path if same else None
    if path is None and entry.path is None and entry.remote:
        path = on_disk(entry.remote, user_files)
    return entry.model_copy(update={"path": path}) if path else entry
