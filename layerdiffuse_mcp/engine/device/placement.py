"""Where networks run and in which number format, and how much memory there is.

On a CPU the default format is float32, which gives the reference's result to rounding; on a GPU it is
float16, which is what the published pictures were made in. An autoencoder that overflows in float16, as SDXL's
does, runs in bfloat16 or float32 instead. The format `fastest` is bfloat16 on a
CPU that computes faster in it, as a measurement on the spot says, and else what `auto` is.
"""

import functools
import time
from dataclasses import dataclass, replace

import torch

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.settings import Device, Dtype

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Placement:
    """A device and the number format of the networks on it."""

    device: torch.device
    dtype: torch.dtype
    reason: str = ""
    """Why this format, where that was measured."""

    @property
    def text_dtype(self) -> torch.dtype:
        """Format of the text encoders: they are small, and half formats buy nothing on a CPU."""
        return torch.float32 if self.device.type == "cpu" else self.dtype

    def vae_dtype(self, fits_float16: bool) -> torch.dtype:
        """Format of the autoencoder and the transparent decoder that follows it."""
        if self.dtype is torch.float16 and not fits_float16:
            return torch.bfloat16 if _has_bfloat16(self.device) else torch.float32
        return self.dtype

    def suited(self, half: str) -> "Placement":
        """The same for a family that runs in another format of 16 bits: where this device has it, else in 32 bits."""
        if self.dtype is not torch.float16 or half == "float16":
            return self
        return replace(self, dtype=DTYPES[half] if _has_bfloat16(self.device) else torch.float32)

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
    reason = ""
    if dtype == "fastest" and device == "cpu":
        gain = bfloat16_gain()
        reason = (
            f"a convolution in bfloat16 takes 1/{gain:.1f} of its time in float32" if gain else "no bfloat16 in CPU"
        )
        dtype = "bfloat16" if gain > 1 else "float32"
    if dtype in ("auto", "fastest"):
        dtype = "float32" if device == "cpu" else "float16"
    if device == "cpu" and dtype == "float16":
        raise InvalidRequest(
            "float16 is not exact and not fast on a CPU. Set LAYERDIFFUSE_DTYPE to float32 or bfloat16."
        )
    return Placement(torch.device(device), DTYPES[dtype], reason)


@functools.cache
def bfloat16_gain() -> float:
    """How many times as fast as in float32 this CPU computes a convolution in bfloat16; 0 if it has no means for that.

    Measured once, on a convolution as the networks have them, in some tens of milliseconds.
    """
    means = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if not any(getattr(torch.cpu, name, lambda: False)() for name in means):
        return 0.0
    seconds = {dtype: _convolution_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.float32] / seconds[torch.bfloat16]


@torch.inference_mode()
def _convolution_seconds(dtype: torch.dtype) -> float:
    picture = torch.zeros(1, 128, 64, 64, dtype=dtype)
    convolution = torch.nn.Conv2d(128, 128, 3, padding=1, dtype=dtype)
    seconds: list[float] = []
    for _ in range(5):
        begun = time.perf_counter()
        convolution(picture)
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def _has_bfloat16(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
