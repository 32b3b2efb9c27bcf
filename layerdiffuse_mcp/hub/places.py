"""Where published files lie on this machine: in the user's models folder, or in the model hub's cache.

path = on_disk(remote, read_models_folder(settings.models_dir))     # a file
folder = folder_here(entry)                                         # a base published as a diffusers folder
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

from layerdiffuse_mcp.families.entries import HubFile, ModelEntry
from layerdiffuse_mcp.families.registry import KNOWN_NAMES
from layerdiffuse_mcp.hub.folder import ModelsFolder
from layerdiffuse_mcp.hub.headers import INDEX, shards


def on_disk(remote: HubFile, user_files: ModelsFolder) -> Path | None:
    """Where a file lies, the user's own copy before the cache's."""
    own = user_files.file(remote.name) if remote.name in KNOWN_NAMES else None  # model.safetensors could be anything
    return own or cached(remote)


def cached(remote: HubFile) -> Path | None:
    """Where the model hub's cache has the file: in the repository's `main` as it was last asked for, else anywhere.

    A repository may have moved on since a file of it was fetched, which leaves the file as good as it was.
    """
    from huggingface_hub import constants  # a small module; all of the library takes 0.3 s to import

    repository = Path(constants.HF_HUB_CACHE) / f"models--{remote.repo.replace('/', '--')}"
    found = (snapshot / remote.path for snapshot in _snapshots(repository))
    return next((path for path in found if os.path.isfile(path) and _is_meant(path, remote)), None)


def _snapshots(repository: Path) -> Iterator[Path]:
    with suppress(OSError, ValueError):
        yield repository / "snapshots" / (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    with suppress(OSError):
        yield from sorted((repository / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)


def _is_meant(path: Path, remote: HubFile) -> bool:
    """Whether the checksum that the cache names a file's content by, where it does, is the one that is known."""
    stored = path.resolve().name
    return remote.sha256 is None or len(stored) != 64 or stored.startswith(remote.sha256)


def indexed(folder: Sequence[HubFile]) -> Iterator[HubFile]:
    """The files that the indexes among a published folder's files name, as far as these are here."""
    for index in folder:
        path = cached(index) if index.path.endswith(INDEX) else None
        for name in shards(path) if path else ():
            where = f"{index.path.rpartition('/')[0]}/{name}"
            yield index.model_copy(update={"path": where, "bytes": None})


def folder_here(entry: ModelEntry) -> Path | None:
    """The published folder, if all of it is here at one commit."""
    roots: set[Path] = set()
    for file in chain(entry.folder, indexed(entry.folder)):
        if (path := cached(file)) is None:
            return None
        roots.add(Path(str(path).removesuffix(file.path)))
    return roots.pop() if len(roots) == 1 else None
