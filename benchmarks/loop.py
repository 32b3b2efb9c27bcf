"""What the denoising loop costs beside the network's own calls; and both passes in one call beside one after the other.

    python benchmarks/loop.py

Everything around the calls counts as the loop: scaling, guidance, the sampler's arithmetic, its noise. The networks
are of SD 1.5's layout, from the pocket model's size to the real one. Seconds are processor time of all threads, which
is steadier than wall time on a shared machine; the fastest run counts. The budget is 2%.
"""

import argparse
import time
from dataclasses import dataclass
from typing import Any

import torch
from _full_size import SD15, fill, unet_without_weights
from _report import header, table
from torch import Tensor

from layerdiffuse_mcp.api.choices import SAMPLERS
from layerdiffuse_mcp.engine.device.threads import for_denoiser
from layerdiffuse_mcp.engine.models.networks import UNetNetwork
from layerdiffuse_mcp.engine.sampling.denoiser import Denoiser
from layerdiffuse_mcp.engine.sampling.noise import BatchNoise
from layerdiffuse_mcp.engine.sampling.samplers import sample
from layerdiffuse_mcp.engine.sampling.schedules import plan, sigma_table
from layerdiffuse_mcp.engine.startup import keep_freed_memory
from layerdiffuse_mcp.engine.types import Conditioning

BUDGET = 0.02


@dataclass(frozen=True)
class Size:
    """A network of SD 1.5's layout with these channels, the side of its latents, and how much of it is run."""

    title: str
    channels: tuple[int, int, int, int]
    side: int
    steps: int = 10
    runs: int = 3
    batches: tuple[int, ...] = (1, 4)


SIZES = (
    Size("as the pocket model", (64, 128, 192, 192), 16),
    Size("a tenth of SD 1.5", (96, 192, 288, 288), 24),
    Size("SD 1.5, 256x256", (320, 640, 1280, 1280), 32, steps=2, runs=1, batches=()),
)
LOOP = ("DPM++ 2M", "DPM++ 2M SDE", "Euler a")


class Timed:
    """A network that adds up the processor time of its calls."""

    def __init__(self, network: UNetNetwork):
        self.seconds = 0.0
        self._network = network

    def __call__(self, x: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        began = time.process_time()
        out = self._network(x, timestep, conditioning)
        self.seconds += time.process_time() - began
        return out


def run(
    network: UNetNetwork, width: int, side: int, name: str, steps: int, batch: int = 1, together: bool = True
) -> tuple[float, float]:
    """Seconds of a whole run, and of the network's calls in it."""
    sampler, levels, timed = SAMPLERS[name], sigma_table(), Timed(network)
    texts = torch.randn(2, 1, 77, width, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(timed, levels, Conditioning(texts[0]), Conditioning(texts[1]), 7.0, batch_cond=together)
    noise = BatchNoise(range(batch), (4, side, side))
    schedule = plan(sampler, "Karras", steps, levels)
    numbers, pixels = sum(weight.numel() for weight in network.unet.parameters()), batch * (8 * side) ** 2
    began = time.process_time()
    with torch.inference_mode(), for_denoiser(numbers, pixels, torch.device("cpu")):
        sample(sampler, denoiser, schedule, noise)
    return time.process_time() - began, timed.seconds


def main() -> None:
    """Measure and print the tables."""
    keep_freed_memory()
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    header("The denoising loop, one picture, with guidance")
    loop: list[tuple[object, ...]] = [("network", "sampler", "ms a call", "loop ms a step", "loop over calls")]
    passes: list[tuple[object, ...]] = [("network", "pictures", "one call, ms a step", "in turn, ms a step", "gain")]
    for size in SIZES:
        config: dict[str, Any] = {**SD15, "block_out_channels": size.channels}
        network, width = UNetNetwork(fill(unet_without_weights(config), torch.float32)), config["cross_attention_dim"]
        run(network, width, size.side, "Euler", 1)
        for name in LOOP:
            whole, calls = min(run(network, width, size.side, name, size.steps) for _ in range(size.runs))
            beside = whole - calls
            loop.append(
                (size.title, name, *(1000 * took / size.steps for took in (calls, beside)), f"{beside / calls:.1%}")
            )
        for batch in size.batches:
            one, two = (
                min(run(network, width, size.side, "Euler", size.steps, batch, together)[0] for _ in range(size.runs))
                for together in (True, False)
            )
            passes.append((size.title, batch, 1000 * one / size.steps, 1000 * two / size.steps, two / one))
    table(loop)
    print()
    table(passes)
    print(f"\nbudget of the loop on a network of ordinary size: {BUDGET:.0%}")


if __name__ == "__main__":
    main()
