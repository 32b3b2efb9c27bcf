"""What is taken for a shortage of memory, and what is not."""

import errno

import pytest

from layerdiffuse_mcp.engine.device.memory import is_out_of_memory


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes."), True),
        (RuntimeError("PytorchStreamReader failed reading zip archive: allocation failed."), True),
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
