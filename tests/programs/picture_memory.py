"""How much memory operations on pictures take at their peak, in bytes: run as a program, each in a process of its own.

python tests/programs/picture_memory.py FOLDER
"""

import io
import os
import re
import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
from PIL import Image

from layerdiffuse_mcp.api.layers import Canvas, LayerOptions, Shadow
from layerdiffuse_mcp.images.alpha import alpha_facts, halo
from layerdiffuse_mcp.images.compose import Layer, arrange, flatten
from layerdiffuse_mcp.images.cutout import cut_from_known, cut_from_two
from layerdiffuse_mcp.images.export import encoded
from layerdiffuse_mcp.images.layout import Shape
from layerdiffuse_mcp.images.own_colour import with_own_colour
from layerdiffuse_mcp.images.preview import preview
from layerdiffuse_mcp.images.read import read_picture
from layerdiffuse_mcp.images.tasks import (
    ComposeTask,
    CutOutTask,
    InspectTask,
    MakeSheetTask,
    PlacedFile,
    SheetOptions,
)
from layerdiffuse_mcp.images.transform import shadow_of, transformed
from layerdiffuse_mcp.images.work import run

SIDE = 1600
FIXED = 44_000_000
"""Bytes that any operation may take however small the picture is: what a tile needs, and the allocator."""
FORMATS: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 1},
    "JPEG": {"quality": 95},
    "WEBP": {"quality": 80, "method": 0},
    "TIFF": {},
    "GIF": {},
    "BMP": {},
}
MODES = {"JPEG": "RGB", "GIF": "L", "BMP": "RGB"}
"""What a format holds where it cannot hold RGBA; a palette for noise would take Pillow seconds to find."""


def noise(height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """The worst that an encoder can be given."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)


def placed() -> Layer:
    return Layer(noise(), "noise")


def readied(scale: float = 1.0, **fields: Any) -> Callable[[], object]:
    """What a layer's fields do to a picture."""
    side = round(SIDE / scale) if scale > 1 else SIDE
    layer = LayerOptions(scale=scale, **fields)
    return partial(transformed, noise(side, side), layer, Shape.of((side, side), layer))


def on_a_canvas(suffix: str) -> Callable[[], object]:
    composition = arrange([placed()])
    flat = flatten(composition)
    return lambda: encoded(composition, flat, suffix)


def reading(folder: Path, name: str) -> Callable[[], object]:
    path = folder / f"noise.{name}"
    return lambda: read_picture(path)


def write_files(folder: Path) -> None:
    """What `reading` reads: noise, one file a format."""
    picture = Image.fromarray(noise())
    for name, options in FORMATS.items():
        shown = picture.convert(MODES[name]) if name in MODES else picture
        shown.save(folder / f"noise.{name}", name, **options)
    dot = np.full((8, 8, 4), 255, np.uint8)
    Image.fromarray(dot).save(folder / "dot.png")


def dot_on_a_canvas(folder: Path) -> Callable[[], object]:
    task = ComposeTask(
        (PlacedFile(folder / "dot.png", "dot"),), Canvas(size=f"{SIDE}x{SIDE}"), (1.0, 0.5, 0.0), preview=True
    )
    return lambda: run(task)


def composed_with_all(folder: Path) -> Callable[[], object]:
    """The picture four times over: itself, as it is turned, and its shadow, on a canvas."""
    fields = LayerOptions(scale=0.4, rotate=45, tint="red", blend="overlay", shadow=Shadow(), defringe=True)
    task = ComposeTask((PlacedFile(folder / "noise.PNG", "noise", fields),), preview=True, suffix=".psd")
    return lambda: run(task)


def looking_at(folder: Path) -> Callable[[], object]:
    return lambda: run(InspectTask(folder / "noise.PNG", preview=True))


def before_a_colour() -> np.ndarray:
    """Noise in the middle of plain grey."""
    picture = noise()
    picture[:40] = picture[-40:] = picture[:, :40] = picture[:, -40:] = 128
    return picture


def alpha_of(picture: np.ndarray) -> np.ndarray:
    return (picture[..., 3] / np.float32(255)).astype(np.float32)


def cutting_out(folder: Path) -> Callable[[], object]:
    Image.fromarray(before_a_colour()[..., :3]).save(folder / "grey.png")
    return lambda: run(CutOutTask(folder / "grey.png", preview=True))


def making_a_sheet(folder: Path) -> Callable[[], object]:
    task = MakeSheetTask((folder / "noise.PNG",), ("noise",), SheetOptions(fit="contain", defringe=True), preview=True)
    return lambda: run(task)


# An operation's name: what prepares it in a folder, and the bytes a pixel that it may take beyond what it was given
OPERATIONS: dict[str, tuple[Callable[[Path], Callable[[], object]], float]] = {
    "alpha facts": (lambda _: partial(alpha_facts, noise()), 0),
    "halo": (lambda _: partial(halo, noise()), 0),
    "flatten": (lambda _: partial(flatten, arrange([placed(), placed()])), 4),
    "trim": (lambda _: partial(arrange, [placed()], trim=True), 2),
    "a colour below": (lambda _: partial(arrange, [placed()], background=(1, 0, 0)), 0),
    "scale down": (lambda _: readied(0.9), 4 + 12 * 0.81),
    "scale up": (lambda _: readied(1.5), 12 + 4 / 2.25),
    "turn": (lambda _: readied(rotate=30), 4 + 12 * 1.87),
    "tint, clean and flip": (lambda _: readied(tint="red", defringe=True, flip="both", rotate=90), 0),
    "shadow": (lambda _: partial(shadow_of, noise(), Shadow(blur=20, spread=3)), 13 * 1.07),
    "flatten blended": (lambda _: partial(flatten, arrange([placed(), replace(placed(), blend="soft-light")])), 4),
    "preview": (lambda _: partial(preview, [noise()]), 4),
    "write PNG": (lambda _: on_a_canvas(".png"), 5),
    "write ORA": (lambda _: on_a_canvas(".ora"), 13),
    "write PSD": (lambda _: on_a_canvas(".psd"), 13),
    "write JPEG": (lambda _: on_a_canvas(".jpg"), 12),
    "write WebP": (lambda _: on_a_canvas(".webp"), 40),
    "read PNG": (lambda folder: reading(folder, "PNG"), 8),
    "read JPEG": (lambda folder: reading(folder, "JPEG"), 8),
    "read WebP": (lambda folder: reading(folder, "WEBP"), 20),
    "read TIFF": (lambda folder: reading(folder, "TIFF"), 9),
    "read GIF": (lambda folder: reading(folder, "GIF"), 8),
    "read BMP": (lambda folder: reading(folder, "BMP"), 8),
    "compose with all": (composed_with_all, 20),
    "compose a dot on a canvas": (dot_on_a_canvas, 9),
    "inspect": (looking_at, 9),
    "cut out before a colour": (lambda _: partial(cut_from_known, before_a_colour(), (0.5, 0.5, 0.5)), 37),
    "cut out before a picture": (lambda _: partial(cut_from_known, noise(), before_a_colour()), 37),
    "cut out before two colours": (lambda _: partial(cut_from_two, noise(), noise(), (0, 0, 0), (1, 1, 1)), 4),
    "own colour": (lambda _: partial(with_own_colour, noise(), alpha_of(noise())), 4),
    "cut out a file": (cutting_out, 38),
    "make a sheet": (making_a_sheet, 9),
}


def peak_memory() -> int:
    """The most that this process has held so far, in bytes."""
    if sys.platform == "linux":  # where getrusage counts what the parent held before the program began
        return int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(name: str, folder: Path) -> int:
    """The bytes that one operation takes at its peak; asked once in a process."""
    small = noise(64, 64)
    preview([small]), halo(small), cv2.resize(small, (8, 8)), Image.fromarray(small).save(io.BytesIO(), "PNG")
    operation = OPERATIONS[name][0](folder)
    before = psutil.Process().memory_info().rss
    kept = operation()
    peak = peak_memory()
    del kept
    return peak - before


def main(folder: Path) -> None:
    """Print each operation's bytes and name, a line each. The processes are forks: what they import is there."""
    for name in OPERATIONS:
        sys.stdout.flush()
        if (child := os.fork()) == 0:
            sys.stdout.write(f"{measure(name, folder)} {name}\n")
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
