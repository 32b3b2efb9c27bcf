"""Where networks run and in which number format, and how much memory there is.

On a CPU the default format is float32, which gives the reference's result to rounding; on a GPU it is
float16, which is what the published pictures were made in. The SDXL autoencoder overflows in float16 and
runs in bfloat16 or float32 instead.
"""

import os
from dataclasses import dataclass

import psutil
import torch

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.methods import Family
from layerdiffuse_mcp.settings import Device, Dtype

DTYPES: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Placement:
    """A device and the number format of the networks on it."""

    device: torch.device
    dtype: torch.dtype

    @property
    def text_dtype(self) -> torch.dtype:
        """Format of the text encoders: they are small, and half formats buy nothing on a CPU."""
        return torch.float32 if self.device.type == "cpu" else self.dtype

    def vae_dtype(self, family: Family) -> torch.dtype:
        """Format of the autoencoder and the transparent decoder that follows it."""
        if family == "sdxl" and self.dtype is torch.float16:
            return torch.bfloat16 if _has_bfloat16(self.device) else torch.float32
        return self.dtype

    @property
    def title(self) -> str:
        """The device's name, for people."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type


def place(device: Device, dtype: Dtype) -> Placement:
    """Resolve `auto`.

    Raises:
        InvalidRequest: a device was asked for that this machine or this build of torch does not have.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[device]:
        usable = ", ".join(name for name, there in available.items() if there)
        raise InvalidRequest(
            f"The device {device} is not usable here: torch {torch.__version__} sees {usable}. "
            "Set LAYERDIFFUSE_DEVICE to one of these, or install the build of torch for your device."
        )
    if dtype == "auto":
        dtype = "float32" if device == "cpu" else "float16"
    if device == "cpu" and dtype == "float16":
        raise InvalidRequest(
            "float16 is not exact and not fast on a CPU. Set LAYERDIFFUSE_DTYPE to float32 or bfloat16."
        )
    return Placement(torch.device(device), DTYPES[dtype])


def memory_free(device: torch.device) -> tuple[int, int]:
    """Bytes free and bytes in all on a device (the machine's memory for cpu and mps)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    machine = psutil.virtual_memory()
    return machine.available, machine.total


def memory_used() -> int:
    """Bytes that this process keeps resident."""
    return psutil.Process(os.getpid()).memory_info().rss


def _has_bfloat16(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
