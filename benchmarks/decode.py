"""How long the eight-fold RGBA decode takes, the plain way and ours.

    python benchmarks/decode.py [--size 512] [--threads N]

The decoder has the released widths and random weights. "Plain" is the network as it comes, one view after another in
float32, and a median over a stack of the views. Errors are against plain, in steps of 255. Seconds are processor time
of all threads together and wall time; on a shared machine the first is the steadier.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from layerdiffuse_mcp.engine.transparency import VIEWS, TransparentDecoder, _turn, _turn_back, decode, lower_median


def plain(decoder: TransparentDecoder, pixel: Tensor, latent: Tensor) -> Tensor:
    seen = []
    with torch.inference_mode():
        for view in VIEWS:
            seen.append(_turn_back(decoder(_turn(pixel, view), _turn(latent, view)).clamp(0, 1), view))
        return torch.stack(seen).median(dim=0).values


def measured(work: Callable[[], Tensor]) -> tuple[Tensor, float, float]:
    processor, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, time.process_time() - processor, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="side of the picture, a multiple of 64")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    side = options.size
    pixel, latent = torch.rand(1, 3, side, side), torch.randn(1, 4, side // 8, side // 8)
    decoder = TransparentDecoder().eval().requires_grad_(False)
    decoder(pixel[..., :64, :64], latent[..., :8, :8])  # the first call sets things up

    print(f"{side}x{side}, 8 views, {options.threads} threads, torch {torch.__version__}")
    print(f"{'way':<34}{'processor s':>12}{'wall s':>9}{'speed':>7}{'mean error /255':>17}")
    reference, base, wall = measured(lambda: plain(decoder, pixel, latent))
    print(f"{'plain float32':<34}{base:>12.2f}{wall:>9.2f}{1:>7.2f}")

    last = torch.channels_last
    rows: list[tuple[str, Callable[[], Tensor]]] = []
    exact = decoder.to(memory_format=last)
    rows.append(("ours, float32", lambda: decode(exact, pixel, latent)))
    rows.append(("ours, float32, four views at once", lambda: decode(exact, pixel, latent, memory=4 * 1600 * side**2)))
    for name, work in rows:
        report(name, work, reference, base)
    half = decoder.to(torch.bfloat16)
    report("ours, bfloat16", lambda: decode(half, pixel, latent), reference, base)

    views = list(torch.rand(8, 4, side, side))
    _, stacked, _ = measured(lambda: torch.stack(views).median(dim=0).values)
    _, network, _ = measured(lambda: lower_median(views))
    print(f"median of eight: stack and torch.median {stacked * 1000:.0f} ms, ours {network * 1000:.0f} ms")


def report(name: str, work: Callable[[], Tensor], reference: Tensor, base: float) -> None:
    result, processor, wall = measured(work)
    error = float((result - reference).abs().mean()) * 255
    print(f"{name:<34}{processor:>12.2f}{wall:>9.2f}{base / processor:>7.2f}{error:>17.4f}")


if __name__ == "__main__":
    main()
