"""Reading `.safetensors` files: names and shapes at once, tensors when asked for.

    file = TensorFile(path)
    file.shapes["conv_in.weight"]        # (320, 4, 3, 3), from the header alone
    file.tensor("conv_in.weight")        # a view of the memory-mapped file: no copy, private to this process
    file.read("conv_in.weight")          # read into fresh memory: for a tensor that is converted or moved anyway

A mapped tensor may be written to (the pages are copied then); the file never changes. The module knows nothing of
models: what the keys mean is the business of `identify.py` and `ldm_keys.py`. Pickle files (`.ckpt`, `.pt`, `.bin`)
are refused, by content as well as by name: unpickling runs whatever code the file brings.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from layerdiffuse_mcp.errors import CheckpointError, ModelError, ModelNotFound

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
PICKLE_SUFFIXES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl"})
MAX_HEADER_BYTES = 100_000_000
HASH_CHUNK = 1 << 22


class TensorFile(Mapping[str, Tensor]):
    """A `.safetensors` file as a mapping of names to memory-mapped CPU tensors.

    Raises `error` (`CheckpointError` unless told otherwise) when the file is a pickle, cut short or not safetensors,
    `ModelNotFound` when there is no such file.
    """

    def __init__(self, path: str | os.PathLike[str], error: type[ModelError] = CheckpointError):
        self.path = Path(path)
        self.error = error
        header = _read_header(self.path, error)
        self.metadata: dict[str, str] = cast(dict[str, str], header.pop("__metadata__", None) or {})
        self._header = header
        self.shapes: dict[str, tuple[int, ...]] = {key: tuple(row["shape"]) for key, row in header.items()}
        try:
            self._open = safe_open(self.path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as reason:
            raise error(f"{self.path.name} is damaged ({reason}); fetch or copy it again.") from reason

    def __iter__(self) -> Iterator[str]:
        return iter(self._header)

    def __len__(self) -> int:
        return len(self._header)

    def __contains__(self, key: object) -> bool:
        return key in self._header

    def __getitem__(self, key: str) -> Tensor:
        return self.tensor(key)

    def tensor(self, key: str) -> Tensor:
        """The tensor as a view of the mapped file (CPU, the file's dtype). `KeyError` when there is no such key."""
        if key not in self._header:
            raise KeyError(key)
        return self._open.get_tensor(key)

    def dtype(self, key: str) -> torch.dtype:
        """The dtype in which the file stores `key`."""
        return DTYPES[self._header[key]["dtype"]]

    def read(self, key: str) -> Tensor:
        """The tensor read into memory of its own (CPU, the file's dtype): the map's pages stay untouched."""
        row = self._header[key]
        begin, end = row["data_offsets"]
        buffer = torch.empty(end - begin, dtype=torch.uint8)
        if end > begin:
            with open(self.path, "rb") as file:
                file.seek(self._data_start + begin)
                file.readinto(cast(Any, buffer.numpy()))
        return buffer.view(self.dtype(key)).view(self.shapes[key])

    @cached_property
    def _data_start(self) -> int:
        with open(self.path, "rb") as file:
            return 8 + int.from_bytes(file.read(8), "little")

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(row["data_offsets"][1] - row["data_offsets"][0] for row in self._header.values())

    def require_finite(self, keys: Iterator[str] | None = None) -> None:
        """Refuse a file that holds NaN or infinity, naming the first such tensor. Reads every byte."""
        for key in keys or iter(self):
            if not is_finite(self.tensor(key)):
                raise self.error(
                    f"{self.path.name} holds values that are not numbers (NaN or infinity) in {key}; "
                    "the file is damaged or was saved from a failed training: fetch it again or use another."
                )

    def sha256(self) -> str:
        """SHA-256 of the whole file, as 64 hex digits. Reads every byte."""
        return file_sha256(self.path)


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite. No temporary of the tensor's size is made."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    if tensor.dtype.itemsize == 1:
        tensor = tensor.float()
    low, high = torch.aminmax(tensor)
    return math.isfinite(low.item()) and math.isfinite(high.item())


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, as 64 hex digits; A1111's short model hash is the first ten."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


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


def _read_header(path: Path, error: type[ModelError]) -> dict[str, dict[str, Any]]:
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
            rows = {key: row for key, row in header.items() if key != "__metadata__"}
            unknown = sorted({row["dtype"] for row in rows.values()} - DTYPES.keys())
            end = max((row["data_offsets"][1] for row in rows.values()), default=0)
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
    return header
