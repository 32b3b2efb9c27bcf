"""Every stage in order, from an empty machine to the shipped files. Stages resume, so it can be stopped and started
again.

    python -m training.run_all --work build/training --scale 1

`--scale` multiplies each stage's minutes. On a CPU every stage runs as one single-threaded process a core (see
`common.Team`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch

from training.export import LAYERS

# a stage and its arguments, its minutes on two CPU cores (None: as long as it takes)
STAGES: list[tuple[list[str], float | None]] = [
    (["data"], None),
    (["autoencoder"], 33),
    (["latents"], None),
    (["offset"], 4),
    (["decoder"], 45),
    (["vae_decoder"], 10),
    (["decoder", "--again"], 45),
    (["unet"], 80),
    *((["layer", "--method", method], 40) for method in LAYERS),
]


def command(stage: list[str], minutes: float | None, work: Path, processes: int) -> list[str]:
    timed = [] if minutes is None else ["--minutes", str(minutes)]
    team = processes > 1 and minutes is not None
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if team else []
    return [sys.executable, *launcher, "-m", f"training.{stage[0]}", *stage[1:], "--work", str(work), *timed]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    parser.add_argument("--out", type=Path, default=Path("layerdiffuse_mcp/pocket"))
    parser.add_argument("--scale", type=float, default=1.0)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    processes = 1 if torch.cuda.is_available() else min(4, os.cpu_count() or 1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} if processes > 1 else dict(os.environ)
    for stage, minutes in STAGES:
        print("==", *stage, flush=True)
        scaled = None if minutes is None else minutes * arguments.scale
        subprocess.run(command(stage, scaled, arguments.work, processes), check=True, env=environment)
    sheets = ["--sheet", str(arguments.work / "sheet.png"), "--layers-sheet", str(arguments.work / "layers.png")]
    for last in (
        ["training.export", "--out", str(arguments.out)],
        ["training.evaluate", "--pocket", str(arguments.out), *sheets],
        ["training.plot", "--out", str(arguments.work / "losses.png")],
    ):
        subprocess.run([sys.executable, "-m", *last, "--work", str(arguments.work)], check=True)


if __name__ == "__main__":
    main()
