"""A picture of the pocket model with its denoiser on one thread, and on all of torch's, which wait for each other.

    python benchmarks/threads.py [--rounds 3] [--steps 20]

The ways alternate, and medians are printed: seconds of the clock, and of the processor.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from _engine import Engine
from _report import header, table

from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.settings import Settings


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    header(f"A picture of 128x128, {options.steps} steps, pocket model, warm")
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(Settings(model="pocket", output_dir=Path(folder), device="cpu"))
        from layerdiffuse_mcp.engine.device import threads  # after the engine, which sets torch's environment first

        request = GenerateRequest(prompt="a red apple", seed=1, steps=options.steps)
        engine.run(request, lambda _: None)
        ways = {"all threads": 0.0, "one thread (ours)": threads.SMALL}
        spent: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, threads.SMALL in ways.items():
                wall, processor = time.perf_counter(), time.process_time()
                engine.run(request, lambda _: None)
                spent[way].append((time.perf_counter() - wall, time.process_time() - processor))
    medians = {way: [statistics.median(column) for column in zip(*rows, strict=True)] for way, rows in spent.items()}
    table([("denoiser on", "seconds", "processor s"), *((way, *seconds) for way, seconds in medians.items())])


if __name__ == "__main__":
    main()
