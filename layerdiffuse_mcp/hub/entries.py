"""The words of the catalogue: a file on the model hub, a base model, a LoRA."""

import os
from pathlib import Path

from layerdiffuse_mcp.methods import Family
from layerdiffuse_mcp.outcome import Frozen

MB, GB = 10**6, 10**9


class RemoteFile(Frozen):
    """A file on the model hub, always `.safetensors`.

    `bytes` is as published, rounded. `sha256` may be a prefix: as much of it as is publicly known.
    """

    repo: str
    path: str
    bytes: int | None = None
    sha256: str | None = None
    licence: str | None = None

    @property
    def name(self) -> str:
        """The file's name without its folder in the repository."""
        return self.path.rsplit("/", 1)[-1]


class ModelEntry(Frozen):
    """A base model by name. `path` is set once its file or folder is on this machine."""

    name: str
    family: Family | None
    description: str
    native_size: int
    licence: str | None = None
    path: Path | None = None
    remote: RemoteFile | None = None
    bytes: int | None = None
    vae: Path | None = None
    """A VAE to be used instead of the base's own."""
    aliases: tuple[str, ...] = ()
    """Other names: what its file is called where it was published, A1111's short hash."""

    @property
    def prepared(self) -> bool:
        """Whether the base can be loaded without fetching anything."""
        return self.path is not None


class LoraEntry(Frozen):
    """A LoRA of the user's by name. `trigger` is the word that calls it up in a prompt."""

    name: str
    description: str = ""
    trigger: str | None = None
    licence: str | None = None
    family: Family | None = None
    path: Path | None = None
    remote: RemoteFile | None = None


def printable(text: str | os.PathLike[str], at_most: int = 4096) -> str:
    """A name or path as it can be shown and sent: whatever is no UTF-8 or not printable stands as its escape.

    A file name is any bytes to the system; Python holds those that are no UTF-8 as lone surrogates, which no JSON can.
    """
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in os.fspath(text))
    return shown if len(shown) <= at_most else f"{shown[: at_most - 3]}..."


def in_words(size: float) -> str:
    """A number of bytes as "7.11 GB", "743 MB" or "12 kB"."""
    if size >= 0.9995 * GB:
        return f"{size / GB:.2f} GB"
    return f"{size / MB:.0f} MB" if size >= MB else f"{max(size, 0) / 1000:.0f} kB"
