"""What is taken for a shortage of memory, and what is not."""

import errno

import pytest
import torch

from layerdiffuse_mcp.engine.device.memory import is_out_of_memory, memory_free
from layerdiffuse_mcp.errors import OutOfMemory


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes."), True),
        (RuntimeError("PytorchStreamReader failed reading zip archive: allocation failed."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"), True),
        (RuntimeError("FIND was unable to find an engine to execute this computation"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), False),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), False),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (caused(RuntimeError("Could not allocate bytes object!"), MemoryError()), True),
        (caused(RuntimeError("a bug"), ValueError("another")), False),
        (ValueError("out of memory"), False),
        (OSError(errno.EACCES, "Permission denied"), False),
    ],
    ids=str,
)
def test_a_shortage_of_memory_is_told_from_other_errors(error: Exception, is_one: bool):
    assert is_out_of_memory(error) is is_one


def test_a_gpu_that_other_programs_fill_says_so(monkeypatch: pytest.MonkeyPatch):
    def full(_: object) -> None:
        raise torch.AcceleratorError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", full)
    with pytest.raises(OutOfMemory, match=r"taken by other programs.*LAYERDIFFUSE_DEVICE=cpu"):
        memory_free(torch.device("cuda"))
