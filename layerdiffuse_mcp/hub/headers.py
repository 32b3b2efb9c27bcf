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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerdiffuse_mcp.errors import CheckpointError, ModelError, ModelNotFound

DTYPES = frozenset(
    ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U8", "BOOL"),
)
"""Number formats that are read, by the names they have in a header."""
PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl"})
MAX_HEADER_BYTES = 100_000_000
HASH_CHUNK = 1 << 22


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file. `rows` holds dtype, shape and data_offsets of each tensor."""

    rows: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, str]
    data_start: int
    """Where the tensors' bytes begin in the file; data_offsets count from here."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor by name."""
        return {key: tuple(row["shape"]) for key, row in self.rows.items()}

    @property
    def count(self) -> int:
        """Numbers in all tensors together."""
        return sum(map(math.prod, self.shapes.values()))


def read_header(path: Path, error: type[ModelError] = CheckpointError) -> Header:
    """Read the header of a safetensors file and check that the file is as long as it says.

    Raises `error` when the file is a pickle, cut short or not safetensors, `ModelNotFound` when there is no such file.
    """
    if not path.is_file():
        raise ModelNotFound(f"There is no file {path}; check the path, or prepare the model first.")
    refuse_pickle(path, error)
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or length < 2 or length > MAX_HEADER_BYTES or length > size:
            raise error(
                f"{path.name} is not a safetensors file, or it was cut short: {size:,} bytes do not hold its header; "
                "fetch or copy it again."
            )
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", None) or {}
            unknown = sorted({row["dtype"] for row in header.values()} - DTYPES)
            end = max((row["data_offsets"][1] for row in header.values()), default=0)
            found = Header(header, metadata, 8 + length)
            _ = found.shapes
        except (ValueError, KeyError, AttributeError, TypeError, IndexError) as reason:
            raise error(
                f"{path.name} is not a safetensors file: its header cannot be read; fetch it again."
            ) from reason
    if unknown:
        raise error(
            f"{path.name} stores its weights as {', '.join(unknown)}, which is not supported; "
            "use a file in fp32, fp16, bf16 or fp8."
        )
    if size < 8 + length + end:
        raise error(
            f"{path.name} was cut short: it has {size:,} bytes of {8 + length + end:,}; fetch or copy it again."
        )
    return found


def refuse_pickle(path: Path, error: type[ModelError] = CheckpointError) -> None:
    """Raise when `path` is a pickle by name or by its first bytes (a zip archive or a pickle opcode)."""
    by_name = path.suffix.lower() in PICKLE_SUFFIXES
    with open(path, "rb") as file:
        magic = file.read(9)
    # torch.save writes a zip; its older form and plain pickles open with the PROTO opcode. A safetensors file has the
    # header's length there, which may look like either, and then "{"
    by_content = magic[8:] != b"{" and (magic[:2] == b"PK" or (magic[:1] == b"\x80" and magic[1:2] <= b"\x05"))
    if by_name or by_content:
        what = f"{path.name} is a pickle file" + ("" if by_name else " under another name")
        raise error(
            f"{what}, and opening a pickle can run any code it carries; only .safetensors files are read. "
            "Look for the .safetensors version of the model, or convert it on a machine where you trust the file."
        )


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, as 64 hex digits; A1111's short model hash is the first ten."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
