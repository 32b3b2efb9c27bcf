"""What one job after another does to a worker's memory: it should be flat.

    python benchmarks/memory.py [--jobs 100] [--size 64] [--steps 2]

Draws with the pocket model, each job another prompt and seed, and prints what the process keeps resident after some of
them. The budget is 1.05 times what it was after the tenth.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from _engine import Engine
from _report import header, resident_memory, table

from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.settings import Settings

BUDGET = 1.05
BASE = 10
"""The job after which everything that is made once has been made."""


def main() -> int:
    """Measure, print the table, and return 1 when the budget is passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--size", type=int, default=64, help="side of the pictures")
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    kept: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(Settings(model="pocket", output_dir=Path(folder), device="cpu"))
        kept[0] = resident_memory()
        for job in range(1, options.jobs + 1):
            sizes = {"width": options.size, "height": options.size, "fit": "as_is"}
            engine.run(
                GenerateRequest(prompt=f"a red apple, number {job}", seed=job, steps=options.steps, **sizes), _silent
            )
            kept[job] = resident_memory()
        engine.close()
        kept[-1] = resident_memory()

    header(f"{options.jobs} pictures of {options.size}x{options.size}, one after another, pocket model on the CPU")
    shown = sorted({1, 2, 5, BASE, options.jobs // 4, options.jobs // 2, options.jobs} & kept.keys())
    rows: list[tuple[object, ...]] = [("after", "MB", f"of job {BASE}")]
    rows += [(name, *_row(kept[job], kept)) for name, job in _named(shown)]
    table(rows)
    ratio = kept[options.jobs] / kept[min(BASE, options.jobs)]
    print(f"ratio {ratio:.3f}, budget {BUDGET}")
    return 0 if ratio <= BUDGET else 1


def _named(jobs: list[int]) -> list[tuple[str, int]]:
    return [("imports", 0), *((f"job {job}", job) for job in jobs), ("models dropped", -1)]


def _row(bytes_kept: int, kept: dict[int, int]) -> tuple[int, float]:
    return round(bytes_kept / 1e6), bytes_kept / kept.get(BASE, bytes_kept)


def _silent(_: object) -> None:
    return None


if __name__ == "__main__":
    sys.exit(main())
