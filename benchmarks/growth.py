"""How time and memory grow with size, steps and count, on the pocket model: straight lines where they should be.

    python benchmarks/growth.py [--rounds 1] [--largest 512] [--plot growth.png]

Size should cost its pixels (until attention among them, which grows with their square, is most of it), steps and count
themselves. "over straight" is a row's processor time over what a straight line through the first and the middle row of
its table gives; memory is the peak above what the process kept before the job. The largest sizes take minutes: ask for
them with `--largest 2048`. The plot needs matplotlib.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _engine import Engine
from _report import header, peak_memory, reset_peak_memory, resident_memory, table

from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.settings import Settings

SIZES = (128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
STEPS = (5, 10, 20, 40)
COUNTS = (1, 2, 4, 8)
FEW = 4
"""Steps of a picture where steps are not what is measured."""


@dataclass(frozen=True)
class Point:
    """One row: how much was asked for, in units that should cost alike, and what it took."""

    title: str
    amount: int
    seconds: float
    processor: float
    peak: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="the fastest counts")
    parser.add_argument("--largest", type=int, default=512, help="largest side that is drawn")
    parser.add_argument("--plot", type=Path, help="write the lines as a PNG")
    options = parser.parse_args()

    header("What grows how, pocket model on the CPU")
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(Settings(model="pocket", output_dir=Path(folder), device="cpu"))
        asked: dict[str, list[tuple[str, int, dict[str, Any]]]] = {
            "size": [
                (f"{n}x{n}", n * n, {"width": n, "height": n, "fit": "as_is"}) for n in SIZES if n <= options.largest
            ],
            "steps": [(str(n), n, {"steps": n}) for n in STEPS],
            "count": [(str(n), n, {"count": n}) for n in COUNTS],
        }
        measured(engine, "warm", 1, {}, 1)
        lines = {
            name: [measured(engine, title, amount, fields, options.rounds) for title, amount, fields in rows]
            for name, rows in asked.items()
        }
    for name, points in lines.items():
        show(name, points)
    if options.plot:
        plot(lines, options.plot)
        print(f"written: {options.plot}")


def measured(engine: Engine, title: str, amount: int, fields: dict[str, Any], rounds: int) -> Point:
    """Draw `rounds` times; the round that took the processor least."""
    return min((_drawn(engine, title, amount, fields) for _ in range(rounds)), key=lambda point: point.processor)


def _drawn(engine: Engine, title: str, amount: int, fields: dict[str, Any]) -> Point:
    request = GenerateRequest(**({"prompt": "a red apple", "seed": 1, "steps": FEW} | fields))
    reset_peak_memory()
    kept, began, processor = resident_memory(), time.perf_counter(), time.process_time()
    engine.run(request, lambda _: None)
    return Point(
        title, amount, time.perf_counter() - began, time.process_time() - processor, max(0, peak_memory() - kept)
    )


def straight(points: list[Point]) -> list[float]:
    """What a line through the first and the middle point gives at each point, in processor seconds."""
    first, middle = points[0], points[len(points) // 2]
    slope = (middle.processor - first.processor) / (middle.amount - first.amount)
    return [first.processor + slope * (point.amount - first.amount) for point in points]


def show(name: str, points: list[Point]) -> None:
    rows: list[tuple[object, ...]] = [(name, "seconds", "processor s", "over straight", "peak MB above")]
    for point, line in zip(points, straight(points), strict=True):
        rows.append((point.title, point.seconds, point.processor, point.processor / line, round(point.peak / 1e6)))
    table(rows)
    print()


def plot(lines: dict[str, list[Point]], path: Path) -> None:
    """A panel for time, the straight line in grey, and one for memory of each line. Sizes span three decades of pixels
    and are drawn on logarithmic axes.
    """
    import matplotlib  # of the `train` extra

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, len(lines), figsize=(4 * len(lines), 6), layout="constrained")
    for (time_panel, memory_panel), (name, points) in zip(panels.T, lines.items(), strict=True):
        amounts = [point.amount for point in points]
        time_panel.plot(amounts, straight(points), color="lightgrey", linewidth=4)
        time_panel.plot(amounts, [point.processor for point in points], color="tab:blue", marker=".")
        memory_panel.plot(amounts, [point.peak / 1e6 for point in points], color="tab:red", marker=".")
        for panel, unit in ((time_panel, "processor seconds"), (memory_panel, "peak MB above")):
            panel.set(title=name, ylabel=unit)
            if name == "size":
                panel.loglog()
            else:
                panel.set_ylim(0, 1.1 * panel.get_ylim()[1])
            panel.set_xticks(amounts, [point.title for point in points], rotation=45, fontsize=7)
            panel.minorticks_off()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
