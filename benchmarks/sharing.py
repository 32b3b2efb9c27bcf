"""What attention sharing costs: one call of a full-size SD 1.5 UNet that draws three frames together, with guidance.

    python benchmarks/sharing.py [--size 256] [--rounds 1]

Beside it, in turn: the same UNet on a plain batch of as many rows, and the plain way of sharing, which merges the
low-rank changes in every call. Weights are random, of the released files' rank. The first round warms up and does not
count; of the others the fastest does. The budget is 1.08 times the plain batch.
"""

import argparse
import time
from collections.abc import Callable

import torch
from _full_size import SD15, fill, too_little_memory, unet_without_weights
from _report import header, table
from torch import Tensor

from layerdiffuse_mcp.engine.layers.attention_sharing import shared_attention
from layerdiffuse_mcp.engine.layers.attention_sharing_file import SharingModel
from layerdiffuse_mcp.engine.models.networks import UNetNetwork
from layerdiffuse_mcp.engine.startup import keep_freed_memory
from layerdiffuse_mcp.engine.types import Conditioning

FRAMES, RANK, BUDGET = 3, 256, 1.08
GIGABYTES = 8


def main() -> None:
    """Measure and print the table."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="side of the pictures, a multiple of 64")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    header(f"SD 1.5, {FRAMES} frames, conditional and unconditional rows, {options.size}x{options.size}, float32")
    if too_little_memory(GIGABYTES):
        return

    unet = fill(unet_without_weights(SD15), torch.float32)
    with torch.device("meta"):
        model = SharingModel(unet, FRAMES, RANK, control=False)
    model, base = fill(model, torch.float32, seed=1), UNetNetwork(unet)
    rows, side = 2 * FRAMES, options.size // 8
    conditioning = Conditioning(torch.randn(rows, 77, 768), positive=torch.arange(rows) >= FRAMES)
    given = torch.randn(rows, 4, side, side), torch.full((rows,), 500), conditioning

    def merging() -> Tensor:
        with shared_attention(base, model) as anew:
            return anew(*given)

    with torch.inference_mode(), shared_attention(base, model) as ours:
        ways: dict[str, Callable[[], Tensor]] = {
            "plain batch": lambda: base.base(*given),
            "shared, merged in every call": merging,
            "shared, merged once a run (ours)": lambda: ours(*given),
        }
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(1 + options.rounds):
            for name, call in ways.items():
                began = time.perf_counter()
                call()
                spent[name].append(time.perf_counter() - began)
    best = {name: min(seconds[1:]) for name, seconds in spent.items()}
    ratios = {name: seconds / best["plain batch"] for name, seconds in best.items()}
    table([("way", "seconds a call", "ratio"), *((name, best[name], ratios[name]) for name in ways)])
    ratio = ratios["shared, merged once a run (ours)"]
    print(f"ratio {ratio:.2f}, budget {BUDGET}")


if __name__ == "__main__":
    main()
