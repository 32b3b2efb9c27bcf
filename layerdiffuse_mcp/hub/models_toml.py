"""What a user's `models.toml` adds to what lies in the models folder.

    for row in listed_in(folder / "models.toml"):   # as often as wanted: it is read again only when it changes
        row.name, row.here(folder), row.remote      # where its file is: on this machine, or on the hub

The file:

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
"""

import functools
import os
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from layerdiffuse_mcp.api.fields import explain
from layerdiffuse_mcp.errors import ModelError
from layerdiffuse_mcp.families.entries import HubFile
from layerdiffuse_mcp.families.registry import BASES, EMBEDDED, FAMILIES, FamilyName
from layerdiffuse_mcp.wording import printable

SUFFIX = ".safetensors"
RESERVED = frozenset({*FAMILIES, *(entry.name for entry in (*EMBEDDED, *BASES))})
"""Names that no entry of the user's can have."""
MAX_TEXT_BYTES = 1_000_000
"""Of models.toml, and of a diffusers folder's JSON files."""
NATIVE_SIZES = range(64, 4097)
REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)


class Row(BaseModel):
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
    def _says_where_it_is(self) -> "Row":
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
        return existing(folder, self.path)


class BaseRow(Row):
    """A base."""

    native_size: int | None = Field(None, ge=NATIVE_SIZES[0], le=NATIVE_SIZES[-1])
    vae: Path | None = None

    @model_validator(mode="after")
    def _names_its_family(self) -> "BaseRow":
        if self.repo is not None and self.family is None:
            raise ValueError(f"family must be given with repo: {' or '.join(FAMILIES)}")
        return self


class LoraRow(Row):
    """A LoRA."""

    trigger: str | None = Field(None, max_length=200)


_ROWS: dict[Literal["base", "lora"], type[Row]] = {"base": BaseRow, "lora": LoraRow}


def small_text(path: Path) -> str:
    """A small text file; raises ValueError when it is no UTF-8 or too large for one that people write."""
    with path.open("rb") as file:
        content = file.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise ValueError(f"it is larger than {MAX_TEXT_BYTES // 1000} kB")
    return content.decode("utf-8")


def existing(folder: Path, named: Path | None) -> Path | None:
    """The file or folder that models.toml names, if it is there."""
    if named is None:
        return None
    try:
        path = folder / named.expanduser()
        return path if os.path.isfile(path) or os.path.isdir(path) else None
    except (OSError, ValueError, RuntimeError):  # too long a name, a NUL, the home of a user who is none
        return None


def listed_in(path: Path) -> tuple[Row, ...]:
    """The entries of the file; none where there is none. Raises ModelError when it cannot be used."""
    try:
        facts = path.stat()
    except OSError:
        return ()
    return _read_list(path, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=8)
def _read_list(path: Path, changed: int, size: int) -> tuple[Row, ...]:
    try:
        tables = tomllib.loads(small_text(path))
    except FileNotFoundError:  # it went meanwhile
        return ()
    except (ValueError, OSError, RecursionError) as error:
        why = printable(str(error), 300)
        raise ModelError(f"{printable(path)} cannot be read: {why}. Correct it, or move it away.") from error
    rows: list[Row] = []
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
