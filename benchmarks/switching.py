"""Switching the layer method of an SDXL UNet: in place, beside the plain way, which loads the base again and merges.

    python benchmarks/switching.py [--width 320] [--dtype float16]

The files have the released names, keys and shapes and random numbers; all is in the page cache. Both ways begin with
the layer file on disk and end with every weight in memory of its own or mapped and touched once. A method's first
switch computes its weights, later ones find them in reserve. After the last switch the base has to
be back bit for bit. The bare products are the same matrices multiplied in float32, without anything around them.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _full_size import ldm_shapes, sdxl, too_little_memory, unet_without_weights, write
from _report import header, table
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from layerdiffuse_mcp.engine.layers.weight_offset import read_offsets
from layerdiffuse_mcp.engine.startup import keep_freed_memory
from layerdiffuse_mcp.engine.weights.patcher import LowRank, Patch, PatchStack
from layerdiffuse_mcp.engine.weights.reader import read_checkpoint
from layerdiffuse_mcp.engine.weights.single_file import unet_from_ldm
from layerdiffuse_mcp.families.sdxl import SDXL
from layerdiffuse_mcp.families.stable_diffusion import UNET_PREFIX

RANK = 256
PAGE = 4096
BUDGET = 0.1
BACK = "back to the base"
METHODS = ("layer_xl_transparent_attn", "layer_xl_fg2ble")


def attention(key: str) -> bool:
    """Whether the released attention files change this weight."""
    return ".attn" in key and ".to_" in key and key.endswith(".weight")


def write_files(folder: Path, width: int) -> int:
    """The base and both layer files; returns the parameters of the base."""
    shapes = ldm_shapes(unet_without_weights(sdxl(width)))
    write(folder / "base.safetensors", {UNET_PREFIX + key: shape for key, shape in shapes.items()})
    low_rank: dict[str, tuple[int, ...]] = {}
    for key, (rows, columns, *_) in ((key, shape) for key, shape in shapes.items() if attention(key)):
        low_rank[f"diffusion_model.{key}::lora::0"] = (rows, RANK)
        low_rank[f"diffusion_model.{key}::lora::1"] = (RANK, columns)
    write(folder / f"{METHODS[0]}.safetensors", low_rank, gain=0.05)
    whole = {k: s for k, s in shapes.items() if "transformer_blocks" not in k and "_embed" not in k}
    whole["input_blocks.0.0.weight"] = (width, 8, 3, 3)
    offsets = {f"diffusion_model.{key}::diff::0": shape for key, shape in whole.items()}
    write(folder / f"{METHODS[1]}.safetensors", offsets, gain=0.05)
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def reload_and_merge(base: Path, layer: Path, dtype: torch.dtype) -> nn.Module:
    """The plain way: everything anew, a weight at a time."""
    state = {key: tensor.to(dtype, copy=True) for key, tensor in load_file(base).items()}
    offsets = load_file(layer)
    for key in {key.partition("::")[0] for key in offsets}:
        weight = state[f"model.{key}"].float()
        if f"{key}::lora::0" in offsets:
            weight = weight + offsets[f"{key}::lora::0"].float() @ offsets[f"{key}::lora::1"].float()
        else:
            difference = offsets[f"{key}::diff::0"].float()
            if difference.shape != weight.shape:
                weight = F.pad(weight, (0, 0, 0, 0, 0, difference.shape[1] - weight.shape[1]))
            weight = weight + difference
        state[f"model.{key}"] = weight.to(dtype)
    unet = unet_from_ldm(state, SDXL, {"in_channels": state[f"{UNET_PREFIX}input_blocks.0.0.weight"].shape[1]})
    touch(unet)
    return unet


def touch(module: nn.Module) -> None:
    """Bring every page of the weights into memory."""
    for parameter in module.parameters():
        parameter.data.flatten()[:: PAGE // parameter.element_size()].sum()


def checksum(module: nn.Module) -> list[int]:
    """A number for the bits of each weight."""
    kinds = {2: torch.int16, 4: torch.int32}
    return [int(p.data.contiguous().view(kinds[p.element_size()]).sum()) for p in module.parameters()]


def seconds(call: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def products(patch: Patch) -> tuple[float, float]:
    """GFLOP of a patch's products, and the seconds that they take alone."""
    pairs = [
        (offset.up.float(), offset.down.float()) for (offset,) in patch.offsets.values() if type(offset) is LowRank
    ]
    work = sum(2 * up.shape[0] * RANK * down.shape[1] for up, down in pairs) / 1e9
    return work, seconds(lambda: [up @ down for up, down in pairs])


def in_place(folder: Path, dtype: torch.dtype) -> tuple[dict[str, float], bool, float, float]:
    """Seconds by switch, whether the base came back, and GFLOP and bare seconds of the low-rank products."""
    checkpoint = read_checkpoint(folder / "base.safetensors")
    unet = checkpoint.unet(dtype)
    stack = PatchStack(unet, checkpoint.parts["unet"].weights)
    stack.reserve = 2**40
    before = checksum(unet)
    patches: dict[str, Patch] = {}

    def to(*methods: str) -> None:
        for method in methods:
            if method not in patches:
                patches[method] = read_offsets(folder / f"{method}.safetensors", unet)
        stack.set(*(patches[method] for method in methods))
        touch(unet)

    spent: dict[str, float] = {}
    for again in ("", " again"):
        for method in METHODS:
            spent[f"to {method}{again}"] = seconds(lambda method=method: to(method))
    spent[BACK] = seconds(to)
    same = checksum(unet) == before
    return spent, same, *products(read_offsets(folder / f"{METHODS[0]}.safetensors", unet))


def main() -> None:
    """Measure and print the table."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=320, help="320 is SDXL's own; a multiple of 64")
    parser.add_argument("--dtype", default="float16", choices=["float16", "bfloat16", "float32"])
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    header(f"Switching the layer method, SDXL of width {options.width}, weights in {options.dtype}")
    if too_little_memory(14 * (options.width / 320) ** 2 * dtype.itemsize / 2):
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = write_files(folder, options.width)
        ours, same, work, alone = in_place(folder, dtype)
        base, layers = folder / "base.safetensors", [folder / f"{method}.safetensors" for method in METHODS]
        plain = [seconds(lambda layer=layer: reload_and_merge(base, layer, dtype)) for layer in layers]
    there = [*plain, *plain, plain[0]]
    rows = [(name, took, plainly, took / plainly) for (name, took), plainly in zip(ours.items(), there, strict=True)]
    table([("switch", "in place, s", "reload and merge, s", "ratio"), *rows])
    print(f"{parameters / 1e6:.0f} M parameters; the base came back {'bit for bit' if same else 'CHANGED'}")
    whole = work / ours[rows[0][0]]
    print(f"low-rank products: {work / alone:.0f} GFLOP/s bare, {whole:.0f} over the whole first switch")
    print(f"budget: {BUDGET} of reload and merge, but for a method's first switch")


if __name__ == "__main__":
    main()
