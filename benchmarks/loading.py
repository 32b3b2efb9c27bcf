"""Loading a full-size base: seconds and peak memory, ours beside the plain way, each in a process of its own.

    python benchmarks/loading.py [--width 320]

The bases are single files in LDM layout, float16, of random numbers: a whole SD 1.5 UNet and SDXL's, which are nearly
all of a base. Kept in float16, weights stay in the mapped file: then the peak is mostly pages that the system can take
back at any time, and what is private ("own") is told apart. "Plain" reads the file into a dictionary, copies it into an
empty network and converts that. The budget is a peak of 1.15 times the weights in the dtype asked for, above what the
process has in memory once everything is imported.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from _full_size import SD15, ldm_shapes, sdxl, too_little_memory, unet_without_weights, write
from _report import header, peak_memory, reset_peak_memory, resident_memory, table
from safetensors.torch import load_file
from torch import nn

from layerdiffuse_mcp.engine.startup import keep_freed_memory
from layerdiffuse_mcp.engine.weights.ldm_names import unet_key_map
from layerdiffuse_mcp.engine.weights.reader import read_checkpoint
from layerdiffuse_mcp.families.stable_diffusion import UNET_PREFIX

BUDGET = 1.15
CASES = (("sd15", "float16"), ("sd15", "float32"), ("sdxl", "float16"))
WAYS = ("plain", "ours")


def load(path: Path, way: str, dtype: torch.dtype) -> nn.Module:
    """The UNet of the file at `path`."""
    if way == "ours":
        return read_checkpoint(path).unet(dtype)
    with torch.device("meta"):
        network = read_checkpoint(path).parts["unet"].make()
    names = unet_key_map(cast(Any, network).config)
    state = {names[key.removeprefix(UNET_PREFIX)]: tensor for key, tensor in load_file(path).items()}
    network = network.to(next(iter(state.values())).dtype).to_empty(device="cpu")
    shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
    network.load_state_dict({name: tensor.view(shapes[name]) for name, tensor in state.items()})
    return network.to(dtype)


class OwnMemory(threading.Thread):
    """Watches the private memory of this process: what is not a page of a file."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self.start()

    def run(self) -> None:
        """Look every 10 ms."""
        process = psutil.Process()
        while True:
            memory = process.memory_info()
            self.peak = max(self.peak, memory.rss - memory.shared)
            time.sleep(0.01)


def measure(path: Path, way: str, dtype: torch.dtype) -> None:
    """Load in this process, read every weight once, and print what it took as JSON."""
    reset_peak_memory()
    before, own = resident_memory(), OwnMemory()
    own_before = psutil.Process().memory_info().rss - psutil.Process().memory_info().shared
    began = time.perf_counter()
    network = load(path, way, dtype)
    for parameter in network.parameters():
        parameter.data.flatten()[:: 4096 // parameter.element_size()].sum()
    spent = time.perf_counter() - began
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    facts = {"seconds": spent, "weights": weights, "peak": peak_memory() - before, "own": own.peak - own_before}
    print(json.dumps(facts))


def main() -> None:
    """Measure and print the table."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=320, help="320 is the bases' own; a multiple of 64")
    parser.add_argument("--measure", nargs=3, metavar=("FILE", "WAY", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        path, way, dtype = options.measure
        measure(Path(path), way, getattr(torch, dtype))
        return
    width = options.width
    header(f"Loading bases of width {width}, files in float16")
    configs = {"sd15": {**SD15, "block_out_channels": (width, 2 * width, 4 * width, 4 * width)}, "sdxl": sdxl(width)}
    rows: list[tuple[object, ...]] = [
        ("base", "in", "way", "seconds", "weights, GB", "peak, GB", "over weights", "of it own, GB")
    ]
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        for family, dtype in CASES:
            if too_little_memory((17 if family == "sdxl" else 9) * (width / 320) ** 2):
                continue
            path = Path(name) / f"{family}.safetensors"
            if not path.exists():
                shapes = ldm_shapes(unet_without_weights(configs[family]))
                write(path, {UNET_PREFIX + key: shape for key, shape in shapes.items()})
            for way in WAYS:
                command = [sys.executable, __file__, "--measure", str(path), way, dtype]
                facts = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                weights, peak, own = (facts[key] / 1e9 for key in ("weights", "peak", "own"))
                over = peak / weights
                rows.append((family, dtype, way, facts["seconds"], weights, peak, over, own))
                if way == "ours":
                    worst = max(worst, over)
    table(rows)
    print(f"worst of ours {worst:.2f} times the weights, budget {BUDGET}")


if __name__ == "__main__":
    main()
