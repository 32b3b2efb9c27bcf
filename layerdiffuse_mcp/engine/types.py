"""The values and protocols that the rooms of the engine hand to each other.

    output = network(x, timestep, conditioning)          # any Network
    LayerImage("foreground", seed, pixels, latent)       # what a drawer returns

It knows no file, no model and no plan.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from layerdiffuse_mcp.families.spec import Role
from layerdiffuse_mcp.images.alpha import Bytes


@dataclass(frozen=True)
class Conditioning:
    """What the network is conditioned on. B rows: 1 (the same for each image of the batch) or one an image.

    context: text embedding (B, T, C). vector: pooled text and size embedding (B, A), or None. concat: latents (B, C, h,
    w) that go behind the noisy latent, unscaled, or None. positive: bool (B,), which rows belong to the conditional
    pass; set by the denoiser, which joins the rows as [unconditional..., conditional...].
    """

    context: Tensor
    vector: Tensor | None = None
    concat: Tensor | None = None
    positive: Tensor | None = None


class Network(Protocol):
    """A noise prediction network."""

    def __call__(self, x: Tensor, timestep: Tensor, conditioning: Conditioning, /) -> Tensor:
        """Predict from x (B, C + K, h, w), float32, at timestep (B,), int64, 0..999: (B, C, h, w) of any dtype.

        x is scaled, with `concat` (of K channels) already behind it, so the conditioning's `concat` is None;
        `positive` is set, and context and vector have B rows.
        """
        ...


@dataclass(frozen=True)
class LayerImage:
    """One layer of one result: `pixels` (H, W, 4) with alpha or (H, W, 3), uint8; `latent` (C, h, w) as sampled."""

    role: Role
    seed: int
    pixels: Bytes
    latent: Tensor
