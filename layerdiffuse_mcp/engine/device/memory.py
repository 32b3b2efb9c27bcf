"""How much memory there is, and giving it back."""

import ctypes
import errno
import gc
import os
import sys

import psutil
import torch
from safetensors import SafetensorError

from layerdiffuse_mcp.errors import OutOfMemory

OUT_OF_MEMORY = (
    "can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory", "allocation failed",
    "could not allocate", "alloc_failed", "allocation_failed", "unable to find a valid cudnn algorithm",
    "find was unable to find an engine",
)  # fmt: skip
"""How allocators say so, in any case of letters: torch's for CPUs, on Linux and on Windows, for MPS, the system's where
a file is mapped, torch's reader of files, NVIDIA's libraries, and cuDNN where no algorithm finds what it wants."""


def memory_free(device: torch.device) -> tuple[int, int]:
    """Bytes free and bytes in all on a device (the machine's memory for cpu and mps), after `trim_heap`.

    Raises:
        OutOfMemory: not even what a process needs for itself is free on a GPU.
    """
    trim_heap()
    if device.type == "cuda":
        try:
            free, total = torch.cuda.mem_get_info(device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                "The GPU's memory is taken by other programs. Close them, or set LAYERDIFFUSE_DEVICE=cpu."
            ) from error
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device), total
    machine = psutil.virtual_memory()
    return machine.available, machine.total


def memory_used() -> int:
    """Bytes that this process keeps resident."""
    return psutil.Process(os.getpid()).memory_info().rss


def release_memory() -> None:
    """Give what has been dropped back to the system, from Python, the device's cache and the C library's heap."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    trim_heap()


def trim_heap() -> None:
    """Give the memory that the C library keeps (see `startup.keep_freed_memory`) back to the system.

    A matter of milliseconds, and of as many for what is allocated next.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc has it, musl has not
        libc.malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that memory ran out, on whichever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if error.__cause__ is not None and is_out_of_memory(error.__cause__):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    text = str(error).casefold()
    return isinstance(error, RuntimeError | OSError | SafetensorError) and any(words in text for words in OUT_OF_MEMORY)
