"""How long the RGBA decode of a picture takes, eight views, and how long and how much memory one of them alone.

    python benchmarks/decode.py [--size 512] [--ways "ours, float32"]

The decoder has the released widths and random weights. "Plain" is the network as it comes, in float32; "floor" is the
work of the network over the measured peak of a matmul of 1024, and of a convolution of 64 channels. Errors are against
plain, in steps of 255. One view runs on one thread; seconds are its processor time, which is the steadier on a shared
machine, and the best of some runs counts. Each way runs in a process of its own; memory is its peak above what it held
before. The whole picture takes all threads, and its seconds are the clock's: the plain way decodes one view after
another and takes the median of a stack. "kept" is with freed memory kept for the next tensor, as the engine has it.
"""

import argparse
import time
from collections.abc import Callable

import torch
from _report import apart, header, peak_memory, reset_peak_memory, resident_memory
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from layerdiffuse_mcp.engine.startup import keep_freed_memory
from layerdiffuse_mcp.engine.transparency.banded_decoder import BandedDecoder
from layerdiffuse_mcp.engine.transparency.decode import VIEWS, decode, lower_median
from layerdiffuse_mcp.engine.transparency.networks import TransparentDecoder

WAYS = {
    "plain, float32": (False, torch.contiguous_format, torch.float32),
    "plain, float32, channels last": (False, torch.channels_last, torch.float32),
    "ours, float32": (True, torch.channels_last, torch.float32),
    "plain, bfloat16, channels last": (False, torch.channels_last, torch.bfloat16),
    "ours, bfloat16": (True, torch.channels_last, torch.bfloat16),
}


def best(work: Callable[[], object], times: int) -> float:
    """Processor seconds."""
    taken: list[float] = []
    for _ in range(times):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def inputs(side: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.rand(1, 3, side, side), torch.randn(1, 4, side // 8, side // 8)


@torch.inference_mode()
def measured(way: str, side: int) -> tuple[float, int, list[float]]:
    """Seconds a view, bytes at the peak, and the result in a form that any process can take."""
    ours, layout, dtype = WAYS[way]
    torch.set_num_threads(1)
    pixel, latent = (t.to(dtype).contiguous(memory_format=layout) for t in inputs(side))
    decoder = TransparentDecoder().eval().to(dtype=dtype, memory_format=layout)
    run = BandedDecoder(decoder) if ours else decoder
    run(pixel[..., :64, :64], latent[..., :8, :8])  # the first call sets things up
    reset_peak_memory()
    before = resident_memory()
    result = run(pixel, latent)
    peak = peak_memory() - before
    return best(lambda: run(pixel, latent), 2 if side <= 1024 else 1), peak, result.float().flatten().tolist()


@torch.inference_mode()
def whole(way: str, side: int, kept: bool) -> float:
    """Seconds of the clock for all eight views and their median."""
    if kept:
        keep_freed_memory()
    ours, layout, dtype = WAYS[way]
    pixel, latent = (t.to(dtype).contiguous(memory_format=layout) for t in inputs(side))
    decoder = TransparentDecoder().eval().to(dtype=dtype, memory_format=layout)
    decoder(pixel[..., :64, :64], latent[..., :8, :8])
    began = time.perf_counter()
    if ours:
        decode(decoder, pixel, latent)
    else:
        turned = [(pixel.rot90(n, (2, 3)), latent.rot90(n, (2, 3))) for n in range(4)]
        turned += [(one.flip(3), other.flip(3)) for one, other in turned]
        torch.stack([decoder(*one).clamp(0, 1) for one in turned]).median(dim=0)
    return time.perf_counter() - began


@torch.inference_mode()
def peaks(dtype: torch.dtype) -> dict[str, float]:
    """Operations a second of a matmul and of a convolution."""
    square, layer = torch.rand(1024, 1024, dtype=dtype), nn.Conv2d(64, 64, 3, padding=1, dtype=dtype)
    layer = layer.to(memory_format=torch.channels_last)
    seen = torch.rand(1, 64, 64, 64, dtype=dtype).contiguous(memory_format=torch.channels_last)
    return {
        "matmul": 2 * 1024**3 / best(lambda: square @ square, 9),
        "convolution": 2 * 64 * 64 * 9 * 64 * 64 / best(lambda: layer(seen), 9),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="side of the picture, a multiple of 64")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="speed is against the first")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        TransparentDecoder()(*inputs(options.size))
    work = counter.get_total_flops()

    header(f"One view of {options.size}x{options.size}, {work / 1e9:.0f} GFLOP, on one thread")
    print(f"{'way':<34}{'seconds':>9}{'speed':>7}{'GFLOP/s':>9}{'memory MB':>11}{'mean error /255':>17}")
    reference, base = torch.empty(0), 0.0
    for way in options.ways:
        seconds, memory, result = apart(measured, way, options.size)
        seen = torch.tensor(result).clamp(0, 1)
        if not base:
            reference, base = seen, seconds
        error = float((seen - reference).abs().mean()) * 255
        numbers = f"{seconds:>9.2f}{base / seconds:>7.2f}{work / seconds / 1e9:>9.0f}{memory / 1e6:>11.0f}"
        print(f"{way:<34}{numbers}{error:>17.5f}", flush=True)
    for dtype in (torch.float32, torch.bfloat16):
        for name, peak in peaks(dtype).items():
            row = f"floor, {str(dtype).removeprefix('torch.')}, {name}"
            print(f"{row:<34}{work / peak:>9.2f}{base * peak / work:>7.2f}{peak / 1e9:>9.0f}")

    print("\nwhole picture, all threads        seconds  speed", flush=True)
    taken: list[float] = []
    plain, *others = options.ways
    for way, kept in ((plain, False), (plain, True), *((way, True) for way in others if WAYS[way][0])):
        taken.append(apart(whole, way, options.size, kept))
        print(f"{way + ', kept' * kept:<34}{taken[-1]:>7.2f}{taken[0] / taken[-1]:>7.2f}", flush=True)

    views = list(torch.rand(len(VIEWS), 4, options.size, options.size))
    stacked, network = best(lambda: torch.stack(views).median(dim=0), 3), best(lambda: lower_median(views), 3)
    print(f"median of eight: stack and torch.median {stacked * 1000:.0f} ms, ours {network * 1000:.0f} ms")


if __name__ == "__main__":
    main()
