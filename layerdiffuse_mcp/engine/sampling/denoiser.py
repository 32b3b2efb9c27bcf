"""The denoiser: what a sampler asks at each level, answered by a network with guidance.

    denoiser = Denoiser(network, sigma_table(), Conditioning(context), Conditioning(negative_context), guidance=7.0)
    denoised = denoiser(x, sigma)

It scales the input, names the timestep, reads what the call is to read, joins conditional and unconditional pass, puts
the condition's latents behind the noisy one, changes to the untouched base below `stop_sigma`, and keeps what an
inpainting mask protects. It knows no sampler; and of a network only that it is called as `types.Network` says. Calls
are counted, so each run has a denoiser of its own.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from layerdiffuse_mcp.engine.sampling.noise import BatchNoise
from layerdiffuse_mcp.engine.sampling.prediction import EPSILON, Prediction
from layerdiffuse_mcp.engine.sampling.schedules import SigmaTable
from layerdiffuse_mcp.engine.types import Conditioning, Network, Timed

_LONGEST_REPEAT = 4  # contexts that would have to be repeated more often are not joined, as in the reference
_KEPT = 4  # texts that come again are read from what was prepared for them
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

    positive: one, or several that guide together, each away from the negative by its weight (Liu et al., "Compositional
    visual generation with composable diffusion models", 2022). guidance: 1 skips the unconditional pass, unless they
    are several or weighted. prediction: what the network predicts. base_network, stop_sigma: below
    this sigma the base network is asked, without `concat`. batch_cond: both passes in one call of the network (twice
    the memory for activations, the same result); contexts of different length are repeated to a common one then.
    Source: A1111/Forge.
    """

    def __init__(
        self,
        network: Network,
        table: SigmaTable,
        positive: Conditioning | Sequence[Timed],
        negative: Conditioning | Timed,
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
        self._prediction = prediction
        together = [_always(positive)] if isinstance(positive, Conditioning) else [*positive]
        self._pulls = [guidance * timed.weight for timed in together]
        alone = len(together) == 1 and together[0].weight == 1 and math.isclose(guidance, 1.0)
        below = _always(negative) if isinstance(negative, Conditioning) else negative
        self._passes = together if alone else [below, *together]
        self._count = 0
        self._batch_cond = batch_cond
        self._inpainting = inpainting
        self._prepared: OrderedDict[tuple[int, ...], list[Conditioning]] = OrderedDict()

    @torch.no_grad()
    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if self._inpainting:
            x = self._inpainting.noised(x, sigma, self._prediction)
        read = [timed.at(self._count) for timed in self._passes]
        self._count += 1
        stopped = float(sigma) < self._stop_sigma
        network = self._base_network if stopped else self._network

        scaled = self._prediction.scale_input(x, sigma)
        timestep = self._table.sigma_to_t(sigma).to(x.device)
        outputs: list[Tensor] = []
        for conditioning in self._calls(read, len(x), x.device):
            rows = len(conditioning.context)
            parts = [scaled.repeat(rows // len(x), 1, 1, 1)]
            if conditioning.concat is not None and not stopped:
                parts.append(conditioning.concat.to(x))
            rest = replace(conditioning, concat=None)
            output = network(torch.cat(parts, dim=1), timestep.expand(rows), rest)
            outputs.extend(output.float().split(len(x)))

        denoised, *guiding = (self._prediction.denoised(x, output, sigma) for output in outputs)
        pulls = [(other - denoised) * pull for other, pull in zip(guiding, self._pulls, strict=False)]
        for pull in pulls:
            denoised = denoised + pull
        return self._inpainting.keep(denoised) if self._inpainting else denoised

    def _calls(self, read: Sequence[Conditioning], batch: int, device: torch.device) -> list[Conditioning]:
        """The network's calls at a step, as they were prepared when the same was last read."""
        key = (batch, *map(id, read))
        if key not in self._prepared:
            self._prepared[key] = self._prepare(read, batch, device)
            if len(self._prepared) > _KEPT:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return self._prepared[key]

    def _prepare(self, read: Sequence[Conditioning], batch: int, device: torch.device) -> list[Conditioning]:
        """One conditioning a call: of the first two passes together, the unconditional rows first, where they fit."""
        guided = len(read) > 1
        passes = [_rows(one, batch, device, not (guided and n == 0)) for n, one in enumerate(read)]
        lengths = [one.context.shape[1] for one in passes[:2]]
        common = math.lcm(*lengths)
        if not (guided and self._batch_cond) or common > _LONGEST_REPEAT * min(lengths):
            return passes
        halves, rest = passes[:2], passes[2:]
        repeated = [half.context.repeat(1, common // half.context.shape[1], 1) for half in halves]
        joined = Conditioning(
            torch.cat(repeated),
            _join([half.vector for half in halves]),
            _join([half.concat for half in halves]),
            _join([half.positive for half in halves]),
            frames=halves[-1].frames,
        )
        return [joined, *rest]


def _always(conditioning: Conditioning) -> Timed:
    return Timed(((0, conditioning),))


def _rows(conditioning: Conditioning, batch: int, device: torch.device, positive: bool) -> Conditioning:
    """The conditioning with a row for each image of the batch."""

    def expanded(tensor: Tensor) -> Tensor:
        return tensor.to(device).expand(batch, *tensor.shape[1:])

    return Conditioning(
        expanded(conditioning.context),
        None if conditioning.vector is None else expanded(conditioning.vector),
        None if conditioning.concat is None else expanded(conditioning.concat),
        torch.full((batch,), positive, device=device),
        frames=conditioning.frames if positive else (),
    )


def _join(tensors: list[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if present else None
