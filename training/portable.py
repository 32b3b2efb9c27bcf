"""A checkpoint that travels: in half precision, in parts small enough for most places that
keep files.

    python -m training.portable pack   --work build/training --stage unet --folder state/unet
    python -m training.portable unpack --work build/training --stage unet --folder state/unet

Everything that resuming needs is in the parts (weights, their average, the optimizer's momentum, steps and time);
half precision moves a weight by less than one step of training does. `part-1.safetensors` has, in its header, what is
not a tensor.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file

PART = 16_000_000  # bytes
SMALL = 2048  # numbers: fewer stay in single precision
KEY, TENSOR = "state", "tensor"


def taken_apart(state: object, found: dict[str, torch.Tensor], place: str = "") -> object:
    """`state` as JSON, in which each tensor is replaced by its name in `found`. Keys keep their type."""
    if isinstance(state, torch.Tensor):
        found[place] = state
        return {TENSOR: place}
    if isinstance(state, dict):
        return {"dict": [[key, taken_apart(value, found, f"{place}/{key}")] for key, value in state.items()]}
    if isinstance(state, list | tuple):
        return [taken_apart(value, found, f"{place}/{number}") for number, value in enumerate(state)]
    return state


def put_together(shape: object, found: dict[str, torch.Tensor]) -> object:
    """The way back of `taken_apart`; tensors become what they were made of: float32 where they are floating."""
    if isinstance(shape, list):
        return [put_together(value, found) for value in shape]
    if isinstance(shape, dict):
        if TENSOR in shape:
            tensor = found[shape[TENSOR]]
            return tensor.float() if tensor.is_floating_point() else tensor
        return {key: put_together(value, found) for key, value in shape["dict"]}
    return shape


def halved(place: str, tensor: torch.Tensor) -> torch.Tensor:
    """In half precision, if it is large: weights in float16, whose mantissa is longer; what the optimizer holds,
    gradients of any size, in bfloat16. Adam's squares, which come near zero, belong to small tensors.
    """
    if not tensor.is_floating_point() or tensor.numel() < SMALL:
        return tensor
    return tensor.to(torch.bfloat16 if place.startswith("/optimizer") else torch.float16)


def parts(tensors: dict[str, torch.Tensor], limit: int) -> list[dict[str, torch.Tensor]]:
    """The tensors in groups of at most `limit` bytes each, in their order."""
    groups: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        size += tensor.nbytes
        if size > limit and groups[-1]:
            groups.append({})
            size = tensor.nbytes
        groups[-1][name] = tensor
    return groups


def pack(file: Path, folder: Path, limit: int = PART) -> list[Path]:
    """Writes the checkpoint `file` as parts into `folder`, in place of those there; returns them."""
    found: dict[str, torch.Tensor] = {}
    shape = taken_apart(torch.load(file, map_location="cpu", weights_only=True), found)
    halves = {name: halved(name, tensor).contiguous().clone() for name, tensor in found.items()}
    header = json.dumps(shape)
    groups = parts(halves, limit - len(header) - 200 * len(halves))  # room for the headers
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("part-*.safetensors"):
        old.unlink()
    written = [folder / f"part-{number}.safetensors" for number in range(1, len(groups) + 1)]
    for number, (group, path) in enumerate(zip(groups, written, strict=True)):
        save_file(group, path, {KEY: header, "parts": str(len(groups))} if number == 0 else None)
    return written


def unpack(folder: Path, file: Path) -> None:
    """Writes the checkpoint whose parts are in `folder` to `file`. Raises `SystemExit` when a part is not there."""
    with safe_open(folder / "part-1.safetensors", framework="pt") as first:
        header = first.metadata()
    found: dict[str, torch.Tensor] = {}
    for number in range(1, int(header["parts"]) + 1):
        path = folder / f"part-{number}.safetensors"
        if not path.exists():
            raise SystemExit(f"{path.name} of {header['parts']} is not in {folder}: copy it there too")
        with safe_open(path, framework="pt") as part:
            found |= {name: part.get_tensor(name) for name in part.keys()}  # noqa: SIM118 (no mapping)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(cast(dict[str, object], put_together(json.loads(header[KEY]), found)), file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["pack", "unpack"])
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    parser.add_argument("--stage", default="unet", help="which checkpoint: the name of its .pt file")
    parser.add_argument("--folder", type=Path, required=True, help="where the parts are")
    arguments = parser.parse_args()
    checkpoint = arguments.work / f"{arguments.stage}.pt"
    if arguments.action == "pack":
        for part in pack(checkpoint, arguments.folder):
            print(f"{part} {part.stat().st_size / 1e6:.1f} MB")
    else:
        unpack(arguments.folder, checkpoint)
