"""What a `.safetensors` file says of itself in its header: names, shapes, dtypes, metadata. No torch, no weights read.

    header = read_header(path)
    header.shapes["conv_in.weight"], header.metadata

Pickle files (`.ckpt`, `.pt`, `.bin`) are refused, by content as well as by name: unpickling runs whatever code the
file brings. What the keys mean is the business of `identify.py`.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

from layerdiffuse_mcp.errors import CheckpointError, DownloadError, ModelError, ModelNotFound
from layerdiffuse_mcp.hub.versions import FileVersion, version_of
from layerdiffuse_mcp.installed import program
from layerdiffuse_mcp.wording import printable, short

DTYPES = frozenset(
    ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U8", "BOOL"),
)
"""Number formats that are read, by the names they have in a header."""
PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl"})
METADATA_KEY = "layerdiffuse_mcp"
"""Under which a header holds what only this project reads, as JSON."""
MAX_HEADER_BYTES = 16_000_000
"""Ten times what the largest bases have; parsed, a header takes some twenty times its size."""
HASH_CHUNK = 1 << 22
INDEX = ".safetensors.index.json"
"""How a file ends that says in which files the weights of a network are."""


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file. `rows` holds dtype, shape and data_offsets of each tensor."""

    rows: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, str]
    data_start: int
    """Where the tensors' bytes begin in the file; data_offsets count from here."""
    version: FileVersion
    """Of the file that it was read from."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor by name."""
        return {key: tuple(row["shape"]) for key, row in self.rows.items()}

    @property
    def count(self) -> int:
        """Numbers in all tensors together."""
        return sum(map(math.prod, self.shapes.values()))


def read_header(path: Path, error: type[ModelError] = CheckpointError, *, any_dtype: bool = False) -> Header:
    """Read the header of a safetensors file and check that the file is as long as it says.

    Raises `error` when the file is a pickle, cut short, not safetensors or, unless `any_dtype`, of a number format that
    is not read here; `ModelNotFound` when there is no such file.
    """
    name = printable(path.name, 80)
    if not os.path.isfile(path):
        raise ModelNotFound(f"There is no file {printable(path)}; check the path, or prepare the model first.")
    refuse_pickle(path, error)
    with open(path, "rb") as file:
        version = version_of(Path(os.path.realpath(path)), os.fstat(file.fileno()))
        size = version.size
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or length < 2 or length > size - 8:
            raise error(
                f"{name} is not a safetensors file, or it was cut short: {size:,} bytes do not hold its header; "
                "fetch or copy it again."
            )
        if length > MAX_HEADER_BYTES:
            raise error(
                f"{name} has a header of {length:,} bytes, and at most {MAX_HEADER_BYTES:,} are read; "
                "use another file of the model."
            )
        text = file.read(length)
    try:
        found = _header(json.loads(text), 8 + length, version)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as reason:
        raise error(f"{name} is not a safetensors file: its header cannot be read; fetch it again.") from reason
    end = max((row["data_offsets"][1] for row in found.rows.values()), default=0)
    if size < found.data_start + end:
        raise error(
            f"{name} was cut short: it has {size:,} bytes of {found.data_start + end:,}; fetch or copy it again."
        )
    unknown = sorted({row["dtype"] for row in found.rows.values()} - DTYPES)
    if unknown and not any_dtype:
        stored = printable(", ".join(islice(unknown, 5)), 80)
        raise error(
            f"{name} stores its weights as {stored}, which is not supported; use a file in fp32, fp16, bf16 or fp8."
        )
    return found


def _header(content: Any, data_start: int, version: FileVersion) -> Header:
    """What a header holds; raises ValueError, KeyError, AttributeError or TypeError where it is none."""
    metadata = content.pop("__metadata__", None) or {}
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata are names and texts")
    for row in content.values():
        begin, end = row["data_offsets"]
        numbers = (*row["shape"], begin, end - begin)
        if type(row["dtype"]) is not str or not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("a row has a dtype, a shape and where its bytes begin and end")
    return Header(cast(Mapping[str, Mapping[str, Any]], content), metadata, data_start, version)


def shards(index: Path) -> list[str]:
    """The files beside a safetensors index in which the weights that it names are.

    Raises:
        DownloadError: it is damaged, or names files elsewhere.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not all(name.endswith(".safetensors") and Path(name).name == name for name in names):
            raise ValueError("names of files beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as reason:
        raise DownloadError(
            f"{printable(index)} is no index of weights ({short(str(reason))}). Fetch it again."
        ) from None
    return names


def stated_by(path: Path) -> dict[str, Any]:
    """What a base made by this project states of itself in its header; nothing where it states or is none."""
    try:
        stated = json.loads(read_header(path).metadata.get(METADATA_KEY, "{}"))
    except (ModelError, OSError, ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], stated) if isinstance(stated, dict) else {}


def refuse_pickle(path: Path, error: type[ModelError] = CheckpointError) -> None:
    """Raise when `path` is a pickle by name or by its first bytes (a zip archive or a pickle opcode)."""
    by_name = path.suffix.lower() in PICKLE_SUFFIXES
    with open(path, "rb") as file:
        magic = file.read(9)
    # torch.save writes a zip; its older form and plain pickles open with the PROTO opcode. A safetensors file has the
    # header's length there, which may look like either, and then "{"
    by_content = magic[8:] != b"{" and (magic[:2] == b"PK" or (magic[:1] == b"\x80" and magic[1:2] <= b"\x05"))
    if by_name or by_content:
        what = f"{printable(path.name, 80)} is a pickle file" + ("" if by_name else " under another name")
        raise error(
            f"{what}, and opening a pickle can run any code it carries; only .safetensors files are read. "
            "Look for the .safetensors version of the model; of a codec for transparency that is published as a pickle "
            f"alone, `{program()} models convert PATH` makes what is read."
        )


def file_sha256(path: str | os.PathLike[str], beat: Callable[[int], None] = lambda _: None) -> str:
    """SHA-256 of a file, as 64 hex digits; A1111's short model hash is the first ten.

    `beat` is called with the bytes of each few megabytes that were read; raising from it stops the reading.
    """
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(HASH_CHUNK):
            digest.update(chunk)
            beat(len(chunk))
    return digest.hexdigest()
