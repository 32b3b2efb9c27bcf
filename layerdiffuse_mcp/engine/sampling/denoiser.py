"""The denoiser: what a sampler asks at each level, answered by a network with guidance.

    denoiser = Denoiser(network, sigma_table(), Conditioning(context), Conditioning(negative_context), guidance=7.0)
    denoised = denoiser(x, sigma)

It scales the input, names the timestep, joins conditional and unconditional pass, puts the condition's latents behind
the noisy one, changes to the untouched base below `stop_sigma`, and keeps what an inpainting mask protects. It knows
no sampler; and of a network only that it is called as `types.Network` says.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from layerdiffuse_mcp.engine.sampling.noise import BatchNoise
from layerdiffuse_mcp.engine.sampling.prediction import EPSILON, Prediction
from layerdiffuse_mcp.engine.sampling.schedules import SigmaTable
from layerdiffuse_mcp.engine.types import Conditioning, Network

_LONGEST_REPEAT = 4  # contexts that would have to be repeated more often are not joined, as in the reference
_MASK_STREAM = 1 << 40  # added to a seed, it names a stream of noise that no other seed of a request has


@dataclass(frozen=True)
class Inpainting:
    """Which part of a latent may change: mask (B or 1, 1, h, w), 1 where it is drawn anew, 0 where it stays.

    latent: what stays, (B or 1, C, h, w). noise: a draw (B, C, h, w) for each time the latent is noised.
    """

    latent: Tensor
    mask: Tensor
    noise: Callable[[], Tensor]

    @classmethod
    def of(cls, latent: Tensor, mask: Tensor, noise: BatchNoise) -> "Inpainting":
        """With a stream of noise of its own for each image of a batch, so that the noise does not depend on the batch.

        The reference draws here from a global generator; so our pictures are repeatable where its are not.
        """
        seeds = [seed + _MASK_STREAM for seed in noise.seeds]
        return cls(latent, mask, BatchNoise(seeds, noise.shape, noise.source, noise.device))

    def noised(self, x: Tensor, sigma: Tensor, prediction: Prediction = EPSILON) -> Tensor:
        """x, with the latent at noise level sigma where it stays."""
        return self.keep(x, prediction.add_noise(self.latent, self.noise(), sigma))

    def keep(self, x: Tensor, latent: Tensor | None = None) -> Tensor:
        """x, with the latent where it stays; to be applied to a run's result, too."""
        latent = self.latent if latent is None else latent
        return x * self.mask + latent * (1 - self.mask)


class Denoiser:
    """Called with x (B, C, h, w) float32 and sigma (0-d), it estimates the picture without noise: (B, C, h, w) float32.

    guidance: 1 skips the unconditional pass. prediction: what the network predicts. base_network, stop_sigma: below
    this sigma the base network is asked, without `concat`. batch_cond: both passes in one call of the network (twice
    the memory for activations, the same result); contexts of different length are repeated to a common one then.
    Source: A1111/Forge.
    """

    def __init__(
        self,
        network: Network,
        table: SigmaTable,
        positive: Conditioning,
        negative: Conditioning,
        guidance: float,
        *,
        prediction: Prediction = EPSILON,
        base_network: Network | None = None,
        stop_sigma: float | None = None,
        batch_cond: bool = True,
        inpainting: Inpainting | None = None,
    ) -> None:
        self._network = network
        self._base_network = base_network or network
        self._stop_sigma = -math.inf if stop_sigma is None else stop_sigma
        self._table = table
        self._guidance = guidance
        self._prediction = prediction
        self._halves = (positive,) if math.isclose(guidance, 1.0) else (negative, positive)
        self._batch_cond = batch_cond
        self._inpainting = inpainting
        self._calls: list[Conditioning] = []
        self._batch = 0

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if self._inpainting:
            x = self._inpainting.noised(x, sigma, self._prediction)
        if len(x) != self._batch:
            self._calls, self._batch = self._prepare(len(x), x.device), len(x)
        stopped = float(sigma) < self._stop_sigma
        network = self._base_network if stopped else self._network

        scaled = self._prediction.scale_input(x, sigma)
        timestep = self._table.sigma_to_t(sigma).to(x.device)
        outputs: list[Tensor] = []
        for conditioning in self._calls:
            rows = len(conditioning.context)
            parts = [scaled.repeat(rows // len(x), 1, 1, 1)]
            if conditioning.concat is not None and not stopped:
                parts.append(conditioning.concat.to(x))
            rest = replace(conditioning, concat=None)
            output = network(torch.cat(parts, dim=1), timestep.expand(rows), rest)
            outputs.extend(output.float().split(len(x)))

        *unconditional, denoised = (self._prediction.denoised(x, output, sigma) for output in outputs)
        if unconditional:
            denoised = unconditional[0] + (denoised - unconditional[0]) * self._guidance
        return self._inpainting.keep(denoised) if self._inpainting else denoised

    def _prepare(self, batch: int, device: torch.device) -> list[Conditioning]:
        """The network's calls at a step: one conditioning each, its rows unconditional first."""
        halves = [_rows(half, batch, device, half is self._halves[-1]) for half in self._halves]
        lengths = [half.context.shape[1] for half in halves]
        common = math.lcm(*lengths)
        if not self._batch_cond or common > _LONGEST_REPEAT * min(lengths):
            return halves
        repeated = [half.context.repeat(1, common // half.context.shape[1], 1) for half in halves]
        return [
            Conditioning(
                torch.cat(repeated),
                _join([half.vector for half in halves]),
                _join([half.concat for half in halves]),
                _join([half.positive for half in halves]),
            )
        ]


def _rows(conditioning: Conditioning, batch: int, device: torch.device, positive: bool) -> Conditioning:
    """The conditioning with a row for each image of the batch."""

    def expanded(tensor: Tensor) -> Tensor:
        return tensor.to(device).expand(batch, *tensor.shape[1:])

    return Conditioning(
        expanded(conditioning.context),
        None if conditioning.vector is None else expanded(conditioning.vector),
        None if conditioning.concat is None else expanded(conditioning.concat),
        torch.full((batch,), positive, device=device),
    )


def _join(tensors: list[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if present else None
