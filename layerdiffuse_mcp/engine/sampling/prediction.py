"""What a denoiser predicts, and how that becomes the denoised latent: epsilon, v, or a flow's velocity.

    prediction = PREDICTIONS["epsilon"]
    output = network(prediction.scale_input(x, sigma), t, conditioning)
    denoised = prediction.denoised(x, output, sigma)
    noisy = prediction.add_noise(latent, noise, sigma)

Sigma is the level of noise as the sampler steps through it. All tensors are (B, C, h, w); sigma is a number or has a
shape that broadcasts over them.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Level = Tensor | float


class Prediction(Protocol):
    """How a network's output is to be read."""

    @property
    def name(self) -> str:
        """Its name in a base's header."""
        ...

    def scale_input(self, x: Tensor, sigma: Level) -> Tensor:
        """What the network is shown of a noisy latent."""
        ...

    def denoised(self, x: Tensor, output: Tensor, sigma: Level) -> Tensor:
        """The latent without noise that an output stands for."""
        ...

    def add_noise(self, latent: Tensor, noise: Tensor, sigma: Level) -> Tensor:
        """A latent with unit noise added up to a level."""
        ...


@dataclass(frozen=True)
class Epsilon:
    """The noise itself (Ho et al., "Denoising diffusion probabilistic models", 2020), variance exploding."""

    name: str = "epsilon"

    def scale_input(self, x: Tensor, sigma: Level) -> Tensor:
        return x / (sigma**2 + 1) ** 0.5

    def denoised(self, x: Tensor, output: Tensor, sigma: Level) -> Tensor:
        return x - output * sigma

    def add_noise(self, latent: Tensor, noise: Tensor, sigma: Level) -> Tensor:
        return latent + noise * sigma


@dataclass(frozen=True)
class VPrediction(Epsilon):
    """A mixture of noise and latent (Salimans and Ho, "Progressive distillation", 2022, appendix D)."""

    name: str = "v_prediction"

    def denoised(self, x: Tensor, output: Tensor, sigma: Level) -> Tensor:
        return x / (sigma**2 + 1) - output * (sigma / (sigma**2 + 1) ** 0.5)


@dataclass(frozen=True)
class Flow:
    """The velocity to the noise (Lipman et al., "Flow matching", 2022): x = (1 - sigma) latent + sigma noise."""

    name: str = "flow"

    def scale_input(self, x: Tensor, sigma: Level) -> Tensor:
        return x

    def denoised(self, x: Tensor, output: Tensor, sigma: Level) -> Tensor:
        return x - output * sigma

    def add_noise(self, latent: Tensor, noise: Tensor, sigma: Level) -> Tensor:
        return latent * (1 - sigma) + noise * sigma


EPSILON, V_PREDICTION, FLOW = Epsilon(), VPrediction(), Flow()
PREDICTIONS: dict[str, Prediction] = {one.name: one for one in (EPSILON, V_PREDICTION, FLOW)}
