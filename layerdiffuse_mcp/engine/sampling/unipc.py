"""UniPC, a multistep predictor-corrector, in the variance preserving space where A1111 runs it."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from layerdiffuse_mcp.engine.sampling.noise import StepNoise

_ORDER = 3


class _Moment(NamedTuple):
    """A level of the run: signal and noise of a unit-variance picture, half the log SNR, and the estimate there."""

    alpha: float
    std: float
    lamb: float
    denoised: Tensor


def sample_unipc(
    denoise: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    sigmas: Tensor,
    noise: StepNoise,
    on_step: Callable[[int, int, Tensor, Tensor], None],
    asked: Tensor | None = None,
) -> Tensor:
    """Zhao et al., "UniPC" (2023): order 3, B1(h) = h, data prediction, lower orders at both ends.

    As every sampler of `samplers.py`, but: asked (n + 1,) is the level at which the network is asked at each of
    `sigmas` (default: the same). The last level is above zero; the result is the variance preserving picture there.
    """
    asked = sigmas if asked is None else asked
    total = len(sigmas) - 1

    def moment(x: Tensor, at: int) -> _Moment:
        """What the network says of the variance preserving x at the level number `at`."""
        alpha, std, lamb = _level(sigmas[at])
        scale = (asked[at] ** 2 + 1).sqrt()
        eps = (x * scale - denoise(x * scale, asked[at])) / asked[at]
        return _Moment(alpha, std, lamb, (x - std * eps) / alpha)

    x = x / (sigmas[0] ** 2 + 1).sqrt()
    history = [moment(x, 0)]
    for step in range(1, total + 1):
        order = min(_ORDER, step, total + 1 - step)
        now, (alpha, std, lamb) = history[0], _level(sigmas[step])
        h = lamb - now.lamb
        steady = x * (std / now.std) - now.denoised * (alpha * math.expm1(-h))
        ratios = np.array([(past.lamb - now.lamb) / h for past in history[1:order]])
        changes = [(past.denoised - now.denoised) / r for past, r in zip(history[1:order], ratios, strict=True)]
        x = steady + _weighted(changes, alpha * h * _weights(ratios, h))
        if step < total:
            ahead = moment(x, step)
            changes.append(ahead.denoised - now.denoised)
            x = steady + _weighted(changes, alpha * h * _weights(np.append(ratios, 1.0), h))
            history = [ahead, *history[: _ORDER - 1]]
        on_step(step - 1, total, x, now.denoised)
    return x


def _level(sigma: Tensor) -> tuple[float, float, float]:
    value = float(sigma)
    alpha = 1 / math.sqrt(value**2 + 1)
    return alpha, value * alpha, -math.log(value)


def _weights(ratios: np.ndarray, h: float) -> np.ndarray:
    """The weights of the changes at these ratios of the step h; a lone one has the paper's simple 1/2."""
    count = len(ratios)
    if count < 2:
        return np.full(count, 0.5)
    phi, factorial, right = math.expm1(-h) / -h - 1, 1.0, []
    for k in range(1, count + 1):
        right.append(phi * factorial / -h)
        factorial *= k + 1
        phi = phi / -h - 1 / factorial
    return np.linalg.solve(np.vander(ratios, increasing=True).T, right)


def _weighted(changes: list[Tensor], weights: np.ndarray) -> Tensor | float:
    total: Tensor | float = 0.0
    for change, weight in zip(changes, weights, strict=True):
        total = total + change * float(weight)
    return total
