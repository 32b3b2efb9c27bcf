"""The noise of a picture, which is a pure function of its seed: not of the device, nor of the batch it is drawn in.

    noise = BatchNoise([12345, 12346], (4, 64, 64))
    noise.initial()                      # the start, (2, 4, 64, 64)
    noise()                              # the next draw, for a sampler that adds noise
    tree = BrownianNoise([12345, 12346], (4, 64, 64), 0.03, 14.6)
    tree(torch.tensor(14.6), torch.tensor(10.0))

Random bits are integers and their normal deviates float64 before they are rounded to float32, so a GPU draws what a CPU
draws. This module knows nothing of schedules or samplers.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from math import prod
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torchsde import BrownianTree

from layerdiffuse_mcp.api.choices import NoiseSource

Shape = tuple[int, ...]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_TO_UNIT = torch.tensor(2.3283064e-10, dtype=torch.float32).item()  # 2^-32, as the reference rounds it
_TO_ANGLE = torch.tensor(2.3283064e-10 * 6.2831855, dtype=torch.float32).item()

_TREE_DIGITS = 6  # a Brownian tree rounds its times to this many decimals
_LEAVES_KEPT = 64  # of each tree: more than one way down asks for


class PhiloxNormal:
    """Draws what PyTorch draws on an NVIDIA GPU: Philox 4x32-10 and Box-Muller's sine branch; source "nvidia".

    seed: any integer; its low 64 bits count. One counter an element, and each draw advances the offset by one.
    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011); A1111's "NV" noise source.
    """

    def __init__(self, seed: int, device: str | torch.device = "cpu") -> None:
        self._key = (seed & _MASK, seed >> 32 & _MASK)
        self._offset = 0
        self._device = torch.device(device)

    def draw(self, shape: Shape) -> Tensor:
        """The next draw: standard normal, float32, on the device."""
        # NumPy costs less than torch on a CPU; and Apple's GPUs have no float64
        on_gpu = self._device.type == "cuda"
        count = prod(shape)
        elements = torch.arange(count, device=self._device) if on_gpu else np.arange(count, dtype=np.int64)
        first, second = (torch.as_tensor(bits).double() for bits in _philox(self._offset, elements, self._key))
        self._offset += 1
        radius = ((first * _TO_UNIT + _TO_UNIT / 2).log() * -2.0).sqrt()
        normal = radius * (second * _TO_ANGLE + _TO_ANGLE / 2).sin()
        return normal.float().reshape(shape).to(self._device)


def _philox(offset: int, elements: Any, key: tuple[int, int]) -> tuple[Any, Any]:
    """The first two of Philox's four words for each counter (offset, 0, element, 0): 32 bits in int64, (N,) each.

    elements: int64 (N,), a tensor or an array; so is what comes back.
    """
    a, b, c, d = elements * 0 + offset, elements * 0, elements, elements * 0
    for _ in range(10):
        left, right = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, c = _high(right), _high(left)
        a ^= b
        a ^= key[0]
        c ^= d
        c ^= key[1]
        right &= _MASK
        left &= _MASK
        b, d = right, left
        key = (key[0] + _KEY_STEPS[0] & _MASK, key[1] + _KEY_STEPS[1] & _MASK)
    return a, b


def _high(products: Any) -> Any:
    """The upper 32 bits of 64, which int64 holds with a sign."""
    high = products >> 32
    high &= _MASK
    return high


class CpuNormal:
    """Draws what PyTorch draws on a CPU, and moves it; source "cpu". seed: from -2^63 to 2^64 - 1."""

    def __init__(self, seed: int, device: str | torch.device = "cpu") -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._device = torch.device(device)

    def draw(self, shape: Shape) -> Tensor:
        """The next draw: standard normal, float32, on the device."""
        return torch.randn(shape, generator=self._generator).to(self._device)


SOURCES: dict[NoiseSource, type[PhiloxNormal] | type[CpuNormal]] = {"nvidia": PhiloxNormal, "cpu": CpuNormal}


class StepNoise(Protocol):
    """What a sampler adds while it steps from one sigma to the next: standard normal (B, C, h, w)."""

    def __call__(self, sigma: Tensor, sigma_next: Tensor, /) -> Tensor: ...


class BatchNoise:
    """The noise of a batch: a generator an image, whose first draw is the start and whose next ones are the steps'.

    seeds: one an image; shape: of one image's latent, (C, h, w). What it returns has the shape
    (len(seeds), *shape), on `device` and in `dtype`.
    """

    def __init__(
        self,
        seeds: Iterable[int],
        shape: Shape,
        source: NoiseSource = "nvidia",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.seeds = tuple(seeds)
        self.shape = shape
        self.source: NoiseSource = source
        self.device = torch.device(device)
        self.dtype = dtype
        self._generators = [SOURCES[source](seed, self.device) for seed in self.seeds]
        self._initial = self._draw()

    def initial(self) -> Tensor:
        """The noise that the pictures start from."""
        return self._initial

    def __call__(self, sigma: Tensor | None = None, sigma_next: Tensor | None = None, /) -> Tensor:
        """The next draw; the noise levels do not matter."""
        return self._draw()

    def brownian(self, lowest: float, highest: float) -> "BrownianNoise":
        """Brownian noise of the same images, for a schedule between these two sigmas."""
        return BrownianNoise(self.seeds, self.shape, lowest, highest, self.source, self.device, self.dtype)

    def _draw(self) -> Tensor:
        return torch.stack([generator.draw(self.shape) for generator in self._generators]).to(self.dtype)


class BrownianNoise:
    """Noise that belongs to the way from one sigma to another: increments of a Brownian tree, one tree an image.

    seeds, shape, source, device, dtype: as for `BatchNoise`; lowest, highest: the range of the *full* schedule, both
    above 0. The tree is torchsde's, its entropy the image's seed, its leaves drawn from the source by a fresh
    generator a leaf. Source: Li et al., "Scalable gradients for stochastic differential equations" (2020).
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Shape,
        lowest: float,
        highest: float,
        source: NoiseSource = "nvidia",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._range = (round(lowest, _TREE_DIGITS), round(highest, _TREE_DIGITS))
        self._leaves = _LeavesFrom(source, _LEAVES_KEPT * len(seeds))
        self._dtype = dtype
        start = torch.zeros(shape, device=device)
        with self._leaves:
            self._trees = [BrownianTree(lowest, start, highest, entropy=seed) for seed in seeds]

    def __call__(self, sigma: Tensor, sigma_next: Tensor, /) -> Tensor:
        """The increment from sigma to sigma_next (0-d), scaled to unit variance: (B, *shape)."""
        low, high = sorted(self._inside(float(end)) for end in (sigma, sigma_next))
        with self._leaves:
            increments = torch.stack([cast(Tensor, cast(Any, tree)(low, high)) for tree in self._trees])
        span = sigma_next - sigma
        return (increments * (torch.sign(span) / span.abs().sqrt())).to(self._dtype)

    def _inside(self, time: float) -> float:
        return min(max(time, self._range[0]), self._range[1])


class _LeavesFrom(TorchFunctionMode):
    """While it is entered, `torch.randn` with a freshly seeded generator draws from another source.

    This is how torchsde, which draws its leaves so and takes no source, is given ours. A leaf is asked for several
    times on the way down, so the last ones are kept.
    """

    def __init__(self, source: NoiseSource, kept: int) -> None:
        super().__init__()

        @lru_cache(kept)
        def leaf(seed: int, shape: Shape, device: torch.device) -> Tensor:
            return SOURCES[source](seed, device).draw(shape)

        self._leaf = leaf

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.randn:
            return self._leaf(kwargs["generator"].initial_seed(), tuple(args[0]), torch.device(kwargs["device"]))
        return func(*args, **kwargs)
