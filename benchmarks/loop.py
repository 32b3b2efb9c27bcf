"""What the denoising loop costs beside the network's own calls; and both passes in one call beside one after the other.

    python benchmarks/loop.py [--steps 10]

Everything around the calls counts as the loop: scaling, guidance, the sampler's arithmetic, its noise. The networks
are of SD 1.5's layout and between the pocket model and a real base in size. Seconds are processor time of all threads,
which is steadier than wall time on a shared machine; the fastest of three runs counts. The budget is 2%.
"""

import argparse
import time
from collections.abc import Mapping
from typing import Any

import torch
from _full_size import SD15, fill, unet_without_weights
from _report import header, table
from torch import Tensor

from layerdiffuse_mcp.choices import SAMPLERS
from layerdiffuse_mcp.engine.networks import UNetNetwork
from layerdiffuse_mcp.engine.sampling.denoiser import Conditioning, Denoiser
from layerdiffuse_mcp.engine.sampling.noise import BatchNoise
from layerdiffuse_mcp.engine.sampling.samplers import sample
from layerdiffuse_mcp.engine.sampling.schedules import plan, sigma_table

BUDGET = 0.02
RUNS = 3
NETWORKS: Mapping[str, tuple[Mapping[str, Any], int]] = {
    "as the pocket model": ({**SD15, "block_out_channels": (64, 128, 192, 192)}, 16),
    "a tenth of SD 1.5": ({**SD15, "block_out_channels": (96, 192, 288, 288)}, 24),
}
LOOP = ("DPM++ 2M", "DPM++ 2M SDE", "Euler a")
BATCHES = (1, 4)


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
    began = time.process_time()
    with torch.inference_mode():
        sample(sampler, denoiser, schedule, noise)
    return time.process_time() - began, timed.seconds


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    steps = parser.parse_args().steps
    header(f"The denoising loop, {steps} steps, one picture, with guidance")
    loop: list[tuple[object, ...]] = [("network", "sampler", "ms a call", "loop ms a step", "loop over calls")]
    passes: list[tuple[object, ...]] = [("network", "pictures", "one call, ms a step", "in turn, ms a step", "gain")]
    for title, (config, side) in NETWORKS.items():
        unet = fill(unet_without_weights(config), torch.float32)
        network, width = UNetNetwork(unet), config["cross_attention_dim"]
        run(network, width, side, "Euler", 1)
        for name in LOOP:
            whole, calls = min(run(network, width, side, name, steps) for _ in range(RUNS))
            loop.append(
                (title, name, 1000 * calls / steps, 1000 * (whole - calls) / steps, f"{(whole - calls) / calls:.1%}")
            )
        for batch in BATCHES:
            one, two = (
                min(run(network, width, side, "Euler", steps, batch, together)[0] for _ in range(RUNS)) / steps
                for together in (True, False)
            )
            passes.append((title, batch, 1000 * one, 1000 * two, two / one))
    table(loop)
    print()
    table(passes)
    print(f"\nbudget of the loop on a network of ordinary size: {BUDGET:.0%}")


if __name__ == "__main__":
    main()
