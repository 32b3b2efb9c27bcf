"""What every base in memory is, whatever computes it: a name, networks by phase, an autoencoder, the files it read.

    model = model_class(checkpoint.spec)(entry.name, Components(checkpoint, placement, files))
    pixels = model.decode_latents(latents)

A family's class adds how it draws: `stable_diffusion.py` by our own pipeline, `pipeline_model.py` by one of diffusers.
"""

import pkgutil
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from layerdiffuse_mcp.engine.device.placement import Placement
from layerdiffuse_mcp.engine.models.components import Components
from layerdiffuse_mcp.engine.sampling.latent_space import to_unscaled
from layerdiffuse_mcp.engine.types import DiffusionModel
from layerdiffuse_mcp.errors import ModelError
from layerdiffuse_mcp.families.spec import FamilySpec, LatentFormat

PIXELS_AT_ONCE = 4 * 1024 * 1024
"""Results are drawn together up to this many pixels; more are drawn one batch after another. One result that has more
is drawn with guidance's two passes in turn."""


@dataclass
class Model:
    """A `types.DiffusionModel` on `Components`, whose networks of the phase "pictures" are one autoencoder.

    video: whether that takes pictures as videos of one frame, (B, P, 1, H, W).
    """

    video: ClassVar[bool] = False

    name: str
    components: Components
    weights: dict[str, str | None] = field(default_factory=dict[str, "str | None"])
    pixels_at_once: int = PIXELS_AT_ONCE
    batch: int = 1

    @property
    def spec(self) -> FamilySpec:
        """The family's card."""
        return self.components.checkpoint.spec

    @property
    def latent(self) -> LatentFormat:
        """The base's own latent format."""
        return self.components.checkpoint.latent

    @property
    def placement(self) -> Placement:
        """Where it runs, and in which number formats."""
        return self.components.placement

    @property
    def vae(self) -> Any:
        """The autoencoder, on the device."""
        return self.components.networks("pictures")[0]

    @torch.inference_mode()
    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the autoencoder's posterior, (B, C, h, w), float32, unscaled.

        pixels: (B, P, H, W), 0..1; H and W multiples of the latent's downscale.
        """
        vae = self.vae
        seen = (pixels * 2 - 1).to(next(vae.parameters()))
        posterior = vae.encode(seen[:, :, None] if self.video else seen).latent_dist
        mean, deviation = posterior.mean.float(), posterior.std.float()
        return (mean[:, :, 0], deviation[:, :, 0]) if self.video else (mean, deviation)

    @torch.inference_mode()
    def decode_latents(self, latents: Tensor, clipped: bool = True) -> Tensor:
        """Sampled latents (B, C, h, w) as the autoencoder's pictures (B, P, H, W), float32, 0..1 or about that.

        Raises:
            ModelError: the autoencoder's numbers overflowed.
        """
        vae = self.vae
        scaled = to_unscaled(latents.to(next(vae.parameters())), self.latent)
        shown = scaled[:, :, None] if self.video else scaled
        pixels = torch.cat([vae.decode(one[None], return_dict=False)[0].float() for one in shown])
        pixels = pixels[:, :, 0] if self.video else pixels
        if not pixels.isfinite().all():
            raise ModelError(
                "The autoencoder returned numbers that are not finite: they overflow in the current number format. "
                "Set LAYERDIFFUSE_DTYPE to bfloat16 or float32 and repeat the call."
            )
        pixels = pixels / 2 + 0.5
        return pixels.clamp(0, 1) if clipped else pixels

    def identify(self, methods: Collection[str], report: Callable[[str], None]) -> None:
        """Note in `weights` which files a drawing by `methods` was made with; see `Provenance.identify`."""
        self.weights = self.components.provenance.identify(self.spec.layer_files([*methods]), report)


def model_class(spec: FamilySpec) -> Callable[[str, Components], DiffusionModel]:
    """The class that computes a family, which its card names."""
    return pkgutil.resolve_name(spec.model)
