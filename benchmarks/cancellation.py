"""How soon a request ends once it is cancelled, phase by phase, on full-size SD 1.5 networks with random weights.

    python benchmarks/cancellation.py [--size 512] [--after 0 1 2]

A request is cancelled some seconds after a phase has told that it began; what counts is the time from then until the
engine has given up and is ready. The budget is 3 seconds on two cores. At the end the same engine draws a picture.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import torch
from _engine import Engine
from _full_size import too_little_memory
from _report import header, table
from picture import GIGABYTES, write_files
from PIL import Image

from layerdiffuse_mcp.api.outcome import Progress
from layerdiffuse_mcp.api.requests import EncodeRequest, GenerateRequest, Request
from layerdiffuse_mcp.errors import Cancelled
from layerdiffuse_mcp.settings import Settings

BUDGET = 3.0
PHASES = {"loading": "loading", "denoising": "denoising 1/", "decoding": "denoising 2/2", "encoding": "encoding"}
"""How the message begins after which a phase runs."""


def seconds_to_end(engine: Engine, request: Request, begins: str, after: float) -> float | None:
    """From cancelling until the run has ended; None if the run was over before."""
    stop = threading.Event()
    asked: list[float] = []

    def cancel() -> None:
        asked.append(time.monotonic())
        stop.set()

    timer = threading.Timer(after, cancel)

    def on_step(progress: Progress) -> None:
        if progress.message.startswith(begins) and timer.ident is None:
            timer.start()

    try:
        engine.run(request, on_step, stop.is_set)
    except Cancelled:
        return time.monotonic() - asked[0]
    finally:
        timer.cancel()
    return None


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--after", type=float, nargs="+", default=[0.0, 1.0, 3.0], help="seconds into a phase")
    options = parser.parse_args()
    header(f"From cancelling to the end of the work, SD 1.5 at {options.size}x{options.size}")
    if too_little_memory(GIGABYTES["sd15"]):
        return
    torch.set_num_threads(min(2, torch.get_num_threads()))
    rows: list[tuple[object, ...]] = [("phase", *(f"{after:g} s into it" for after in options.after))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(folder, "sd15")
        given = folder / "given.png"
        Image.new("RGBA", (options.size, options.size), (200, 30, 30, 128)).save(given)
        engine = Engine(Settings(models_dir=folder, output_dir=folder / "out", device="cpu", dtype="float32"))
        sides = {"width": options.size, "height": options.size, "fit": "as_is"}
        drawing = GenerateRequest(prompt="a red apple", seed=1, model="sd15", steps=2, **sides)
        for phase, begins in PHASES.items():
            request = EncodeRequest(image=given, model="sd15") if phase == "encoding" else drawing
            took: list[str] = []
            for after in options.after:
                if phase == "loading":
                    engine.close()
                seconds = seconds_to_end(engine, request, begins, after)
                took.append("over before" if seconds is None else f"{seconds:.2f} s")
            rows.append((phase, *took))
        engine.run(drawing, lambda _: None)
        engine.close()
    table(rows)
    print(f"\nbudget: {BUDGET:g} s; the engine drew a picture afterwards")


if __name__ == "__main__":
    main()
