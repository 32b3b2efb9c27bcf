"""What it gains on a CPU that freed memory is kept for the next tensor: calls of a full-size SD 1.5 UNet.

    python benchmarks/allocator.py [--sizes 256 512] [--rounds 3]

"As it comes" is where glibc's thresholds settle by themselves: what is larger than 32 MB goes back to the system when
it is freed, and comes again zeroed, page by page. The ways alternate; medians are printed.
"""

import argparse
import ctypes
import statistics
import sys
import time

import torch
from _full_size import SD15, fill, too_little_memory, unet_without_weights
from _report import header, table

from layerdiffuse_mcp.engine.startup import keep_freed_memory

MEGABYTE = 2**20
SETTLED = {-4: 65536, -3: 32 * MEGABYTE, -1: 64 * MEGABYTE}
"""Of glibc's `mallopt`: mappings at most, size from which memory is mapped, and free memory that is given back."""
GIGABYTES = 8


def as_it_comes() -> None:
    """Undo `keep_freed_memory`."""
    for option, value in SETTLED.items():
        ctypes.CDLL(None).mallopt(option, value)


WAYS = {"as it comes": as_it_comes, "kept (ours)": keep_freed_memory}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256], help="sides of the pictures")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    header("A call of SD 1.5, float32")
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"):
        print("left out: memory is kept with glibc alone")
        return
    if too_little_memory(GIGABYTES):
        return
    unet = fill(unet_without_weights(SD15), torch.float32)
    rows: list[tuple[object, ...]] = [("size", "memory", "seconds", "page faults")]
    for size in options.sizes:  # guidance's two passes
        x, text = torch.randn(2, 4, size // 8, size // 8), torch.randn(2, 77, 768)
        spent: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
        for _ in range(1 + options.rounds):
            for way, choose in WAYS.items():
                choose()
                began, faults = time.perf_counter(), _faults()
                with torch.inference_mode():
                    unet(x, 500, encoder_hidden_states=text, added_cond_kwargs={})
                spent[way].append((time.perf_counter() - began, _faults() - faults))
        for way, found in spent.items():
            seconds, faulted = (statistics.median(column) for column in zip(*found[1:], strict=True))
            rows.append((f"{size}x{size}", way, seconds, round(faulted)))
    table(rows)


def _faults() -> int:
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


if __name__ == "__main__":
    main()
