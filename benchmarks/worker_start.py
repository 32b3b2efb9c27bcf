"""From starting a worker's process to the first denoising step of the pocket model: ours beside the plain way.

    python benchmarks/worker_start.py [--rounds 3] [--against FOLDER]

"Plain" imports diffusers and transformers as they come. `--against` measures another checkout of this repository as
well. The rounds alternate, so that whatever else the machine does falls on all alike; medians are printed, as seconds
of the clock and, steadier on a machine that others use, of the processor.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _report import header, table

from layerdiffuse_mcp.engine.startup import DEFAULTS

HERE = Path(__file__).parents[1]
PROBE = """
import json, sys, time
from pathlib import Path

began, way, output = float(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
marks = {}
mark = lambda name: marks.setdefault(name, (time.time() - began, time.process_time()))

from layerdiffuse_mcp.engine import startup
from layerdiffuse_mcp.jobs.planner import plan
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.settings import Settings
settings = Settings(model="pocket", output_dir=output, device="cpu")
mark("Python, settings")
import torch
mark("torch")
if way == "plain":
    import transformers
    from diffusers import AutoencoderKL, UNet2DConditionModel
    transformers.CLIPTextModel
if way == "ours":
    Engine = startup.load_engine()
else:
    from layerdiffuse_mcp.engine.engine import Engine
engine = Engine(settings)
mark("diffusers, engine")

def on_step(progress):
    if progress.message.startswith("denoising 1/"):
        mark("model, first step")
        print(json.dumps(marks))
        sys.exit()

planned = plan(GenerateRequest(prompt="a red apple", seed=1), settings)
engine.run(planned.tasks[0], planned.inputs, on_step)
"""


def marks_of(way: str, folder: Path, output: str) -> dict[str, tuple[float, float]]:
    """Each mark's seconds since the process was started, and its processor seconds."""
    command = [sys.executable, "-c", PROBE, str(time.time()), way, output]
    done = subprocess.run(command, cwd=folder, env=os.environ | DEFAULTS, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another checkout, measured as it comes")
    options = parser.parse_args()

    ways = {"plain": HERE, "ours": HERE} | ({"against": options.against.absolute()} if options.against else {})
    with tempfile.TemporaryDirectory() as output:
        marks_of("ours", HERE, output)  # fills the caches of the file system
        rounds = [{way: marks_of(way, folder, output) for way, folder in ways.items()} for _ in range(options.rounds)]

    header(f"A worker's start, seconds since its process began (processor seconds), median of {options.rounds} rounds")
    names = list(rounds[0]["ours"])
    rows: list[tuple[object, ...]] = [("until", *ways, *(f"ours / {way}" for way in ways if way != "ours"))]
    for name in names:
        clock, processor = ({way: median(rounds, way, name, n) for way in ways} for n in (0, 1))
        ratios = (f"{clock['ours'] / clock[way]:.2f} ({processor['ours'] / processor[way]:.2f})" for way in ways)
        cells = (f"{clock[way]:.2f} ({processor[way]:.2f})" for way in ways)
        rows.append((name, *cells, *(ratio for way, ratio in zip(ways, ratios, strict=True) if way != "ours")))
    table(rows)


def median(rounds: list[dict[str, dict[str, tuple[float, float]]]], way: str, name: str, index: int) -> float:
    return statistics.median(marks[way][name][index] for marks in rounds)


if __name__ == "__main__":
    main()
