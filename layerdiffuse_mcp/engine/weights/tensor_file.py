"""Reading `.safetensors` files: names and shapes at once, tensors when asked for.

    file = TensorFile(path)
    file.shapes["conv_in.weight"]        # (320, 4, 3, 3), from the header alone
    file.tensor("conv_in.weight")        # a view of the memory-mapped file: no copy, private to this process
    file.read("conv_in.weight")          # read into fresh memory: for a tensor that is converted or moved anyway

A mapped tensor may be written to (the pages are copied then); the file never changes. The module knows nothing of
models: what the keys mean is the business of `hub/identify.py` and `ldm_keys.py`. The header is read, and pickles are
refused, in `hub/headers.py`, which needs no torch.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from layerdiffuse_mcp.engine.device.cancellation import CHECK_BYTES, check
from layerdiffuse_mcp.engine.device.memory import is_out_of_memory
from layerdiffuse_mcp.errors import CheckpointError, ModelError
from layerdiffuse_mcp.hub.headers import read_header

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


class TensorFile(Mapping[str, Tensor]):
    """A `.safetensors` file as a mapping of names to memory-mapped CPU tensors.

    Raises `error` (`CheckpointError` unless told otherwise) when the file is a pickle, cut short or not safetensors,
    `ModelNotFound` when there is no such file, `MemoryError` when there is no room to map it. Reading asks
    `cancellation.check`.
    """

    def __init__(self, path: str | os.PathLike[str], error: type[ModelError] = CheckpointError):
        self.path = Path(path)
        self.error = error
        self.header = read_header(self.path, error)
        self.metadata = self.header.metadata
        self.shapes = self.header.shapes
        self._rows = self.header.rows
        try:
            self._open = safe_open(self.path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as reason:
            if is_out_of_memory(reason):
                raise MemoryError(f"{self.path.name} could not be mapped: {reason}") from reason
            raise error(f"{self.path.name} is damaged ({reason}); fetch or copy it again.") from reason
        self._require_unchanged(os.stat(self.path))

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> Tensor:
        return self.tensor(key)

    def tensor(self, key: str) -> Tensor:
        """The tensor as a view of the mapped file (CPU, the file's dtype). `KeyError` when there is no such key."""
        if key not in self._rows:
            raise KeyError(key)
        return self._open.get_tensor(key)

    def dtype(self, key: str) -> torch.dtype:
        """The dtype in which the file stores `key`."""
        return DTYPES[self._rows[key]["dtype"]]

    def read(self, key: str) -> Tensor:
        """The tensor read into memory of its own (CPU, the file's dtype): the map's pages stay untouched."""
        row = self._rows[key]
        begin, end = row["data_offsets"]
        buffer = torch.empty(end - begin, dtype=torch.uint8)
        if end > begin:
            into = memoryview(cast(Any, buffer.numpy()))
            with open(self.path, "rb", buffering=0) as file:
                self._require_unchanged(os.fstat(file.fileno()))
                file.seek(self.header.data_start + begin)
                place = 0
                while place < len(into):
                    check()
                    count = file.readinto(into[place : place + CHECK_BYTES])
                    if not count:
                        raise self.error(f"{self.path.name} was cut short while it was read; fetch or copy it again.")
                    place += count
        return buffer.view(self.dtype(key)).view(self.shapes[key])

    def _require_unchanged(self, facts: os.stat_result) -> None:
        """Refuse another file under the same name: its bytes lie elsewhere than this one's header says."""
        read = self.header.version
        if (facts.st_size, facts.st_mtime_ns) != (read.size, read.changed):
            raise self.error(f"{self.path.name} was replaced while it is in use. Repeat the call, which loads it anew.")

    def require_finite(self, keys: Iterator[str] | None = None) -> None:
        """Refuse a file that holds NaN or infinity, naming the first such tensor. Reads every byte."""
        for key in keys or iter(self):
            if not is_finite(self.tensor(key)):
                raise self.error(
                    f"{self.path.name} holds values that are not numbers (NaN or infinity) in {key}; "
                    "the file is damaged or was saved from a failed training: fetch it again or use another."
                )


def is_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite. No temporary of the tensor's size is made."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    for part in _parts(tensor):
        check()
        low, high = torch.aminmax(part.float() if part.dtype.itemsize == 1 else part)
        if not (math.isfinite(low.item()) and math.isfinite(high.item())):
            return False
    return True


def _parts(tensor: Tensor) -> Sequence[Tensor]:
    """The tensor in parts of up to `CHECK_BYTES`, or whole where a view of parts is not to be had."""
    if not tensor.is_contiguous():
        return [tensor]
    return tensor.view(-1).split(CHECK_BYTES // tensor.element_size())
