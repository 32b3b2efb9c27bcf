"""The words of the catalogue: a file on the model hub, a base model and where its files lie, a LoRA.

No torch, no network.
"""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from layerdiffuse_mcp.errors import ModelNotFound

MB, GB = 10**6, 10**9
NOT_COMMERCIAL = re.compile(r"\bnc\b|non-?commercial|\bresearch\b", re.IGNORECASE)
"""What the names of licences say that forbid commercial use, as in cc-by-nc-4.0."""


Speed = Literal["draft", "normal"]
"""What few-step LoRAs are for: about 4 steps, about 8."""


def is_commercial(licence: str | None) -> bool:
    """Whether a licence is not known to forbid commercial use."""
    return NOT_COMMERCIAL.search(licence or "") is None


class Frozen(BaseModel):
    """A value: immutable, with no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class HubFile(Frozen):
    """A file on the model hub: `.safetensors`, or an `.onnx` graph that is pinned.

    `bytes` is as published, rounded. `sha256` may be a prefix: as much of it as is publicly known. `revision` is the
    commit that it is taken from, the repository's `main` where there is none. converted_from: the pickle, beside it in
    the repository, that is published instead of it; `layerdiffuse-mcp models convert` makes the file of that.
    """

    repo: str
    path: str
    bytes: int | None = None
    sha256: str | None = None
    licence: str | None = None
    revision: str | None = None
    converted_from: str | None = None

    @property
    def fetched(self) -> "HubFile":
        """What is fetched to have it: itself, or the pickle."""
        return self if self.converted_from is None else self.model_copy(update={"path": self.converted_from})

    @property
    def is_converted(self) -> bool:
        """Whether it is a pickle that is known here: it is fetched, and not opened but by converting it."""
        return self.path == self.converted_from

    @property
    def pinned(self) -> bool:
        """Whether commit and whole checksum are known: no other file can come in its place."""
        return self.revision is not None and len(self.sha256 or "") == 64

    @property
    def is_weights(self) -> bool:
        """Whether it is a safetensors file, which has a header."""
        return self.path.endswith(".safetensors")

    @property
    def is_text(self) -> bool:
        """Whether it is a configuration or a vocabulary, which runs nothing."""
        return self.path.endswith((".json", ".txt"))

    @property
    def commercial(self) -> bool:
        """Whether its licence is not known to forbid commercial use."""
        return is_commercial(self.licence)

    @property
    def name(self) -> str:
        """The file's name without its folder in the repository."""
        return self.path.rsplit("/", 1)[-1]


class ModelEntry(Frozen):
    """A base model by name. `path` is set once its file or folder is on this machine.

    vae: a VAE to be used instead of the base's own. aliases: what its file is called where it was published, A1111's
    short hash. advice: fields of `spec.Advice` that this base wants otherwise than its family's methods. vocabulary: a
    list of all that it has learnt words for, a file beside its own (`hub/vocabulary.py`), for a base that is so small.
    batches_pay: whether results drawn as one batch were measured to take less time than one after another. folder: the
    files of a base that is published as a diffusers folder, instead of `remote`; what an index among them names comes
    to them. time: what one picture takes, in words, where that was computed and not measured.
    """

    name: str
    family: str | None
    description: str
    native_size: int
    licence: str | None = None
    path: Path | None = None
    remote: HubFile | None = None
    folder: tuple[HubFile, ...] = ()
    time: str = ""
    bytes: int | None = None
    vae: Path | None = None
    aliases: tuple[str, ...] = ()
    advice: dict[str, Any] = {}
    vocabulary: str | None = None
    batches_pay: bool = False

    @property
    def published(self) -> tuple[HubFile, ...]:
        """Its files on the hub, as far as they are known before any is here."""
        return (self.remote,) if self.remote else self.folder

    @property
    def prepared(self) -> bool:
        """Whether the base can be loaded without fetching anything."""
        return self.path is not None


class LoraEntry(Frozen):
    """A LoRA by name. `trigger` is the word that calls it up in a prompt, `advice` what a few-step LoRA brings, `speed`
    the wish that it fulfils.
    """

    name: str
    description: str = ""
    trigger: str | None = None
    licence: str | None = None
    family: str | None = None
    path: Path | None = None
    remote: HubFile | None = None
    advice: dict[str, Any] = {}
    speed: Speed | None = None


class ControlEntry(Frozen):
    """A ControlNet by name, in a file or a diffusers folder. family: of the bases that it fits, None for others than
    those known here. kind: what it follows, as far as its name says that.
    """

    name: str
    path: Path
    family: str | None = None
    kind: str | None = None


class ModelFiles(Frozen):
    """Where the files of a base lie on this machine, as they were found at one moment.

    layers: layer files and transparency files by published name; absent: of those that are not here, what to do about
    it. loras, inversions: those that were asked for, by the name they were asked for by.
    """

    base: Path
    vae: Path | None = None
    layers: dict[str, Path] = {}
    absent: dict[str, str] = {}
    loras: dict[str, Path] = {}
    inversions: dict[str, Path] = {}

    def layer(self, name: str) -> Path:
        """The layer or transparency file of that name; raises ModelNotFound when it is not here."""
        if name not in self.layers:
            raise ModelNotFound(self.absent.get(name, f"{name} is no file that this model works with."))
        return self.layers[name]
