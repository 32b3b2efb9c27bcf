"""What a larger picture costs when it is redrawn in tiles: its time grows with its area, its memory hardly.

    python benchmarks/detail.py [--scales 1 2 4] [--steps 2]

Enlarges a picture of the pocket model's own size, and prints for each scale tiles, seconds and the process's peak over
what it kept before; and beside it the same picture as one tile. The budget is twice the peak of scale 1, plus 400 bytes
a pixel of the result.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _engine import Engine
from _report import header, peak_memory, reset_peak_memory, resident_memory, table
from PIL import Image

from layerdiffuse_mcp.api.detail import Detail, Tiling
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.settings import Settings

SIDE = 128
PER_PIXEL = 400


def main() -> int:
    """Measure, print the table, and return 1 when the budget is passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scales", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    rows: list[tuple[object, ...]] = [("scale", "tiles", "seconds", "peak MB", "in one tile: seconds", "peak MB")]
    over = False
    with tempfile.TemporaryDirectory() as folder:
        disc = Path(folder) / "disc.png"
        _disc().save(disc)
        engine = Engine(Settings(model="pocket", output_dir=Path(folder), device="cpu"))
        _measure(engine, disc, Detail(scale=1), options.steps)  # loads
        first = 0.0
        for scale in options.scales:
            side = SIDE * scale
            tiles, seconds, peak = _measure(engine, disc, Detail(scale=scale), options.steps)
            whole = Detail(scale=scale, tiling=Tiling(width=side, height=side))
            _, seconds_whole, peak_whole = _measure(engine, disc, whole, options.steps)
            rows.append((scale, tiles, seconds, peak / 1e6, seconds_whole, peak_whole / 1e6))
            first = first or peak
            over |= peak > 2 * first + PER_PIXEL * side**2
        engine.close()
    header(f"A picture of {SIDE}x{SIDE} redrawn larger, {options.steps} steps, pocket model on the CPU")
    table(rows)
    return 1 if over else 0


def _measure(engine: Engine, picture: Path, detail: Detail, steps: int) -> tuple[int, float, float]:
    """Tiles, seconds, and bytes at most over what was kept before."""
    request = GenerateRequest(prompt="a red ball", image=picture, strength=0, detail=detail, steps=steps, seed=1)
    reset_peak_memory()
    before, begun = resident_memory(), time.monotonic()
    made = engine.run(request, lambda _: None)
    tiling = made.recipe["request"]["detail"]["tiling"] if made.recipe else {}
    side = round(SIDE * detail.scale)
    return len(Tiling(**tiling).boxes((side, side))), time.monotonic() - begun, peak_memory() - before


def _disc() -> Image.Image:
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    alpha = np.clip((SIDE * 0.35 - np.hypot(x, y)) * 64, 0, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([np.full_like(alpha, 200), np.full((SIDE, SIDE, 2), 40, np.uint8), alpha]))


if __name__ == "__main__":
    sys.exit(main())
