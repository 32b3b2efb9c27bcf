"""How SD 1.5 and SDXL compute: prompts to conditioning, pictures to latents and back, latents to predictions.

    model = model_class(checkpoint.spec)(entry.name, Components(checkpoint, placement, files))
    conditioning = model.encode_prompt("a red apple", negative=False, ...)
    output = model.network()(x, timestep, conditioning)
    pixels = model.decode_latents(latents)

The two differ in how a prompt is encoded, which is all that their classes say. A network that was asked for is on the
device until one of another phase is (see `components.py`). No plan, no sampler and no file is known here.
"""

import pkgutil
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from layerdiffuse_mcp.engine.device.placement import Placement
from layerdiffuse_mcp.engine.models.components import Components
from layerdiffuse_mcp.engine.models.networks import UNetNetwork
from layerdiffuse_mcp.engine.sampling.latent_space import to_unscaled
from layerdiffuse_mcp.engine.sampling.prediction import PREDICTIONS, Prediction
from layerdiffuse_mcp.engine.sampling.schedules import SigmaTable, sigma_table
from layerdiffuse_mcp.engine.text.clip import TextEncoder
from layerdiffuse_mcp.engine.text.clip_embeddings import encode_sd15, encode_sdxl, sdxl_vector
from layerdiffuse_mcp.engine.types import Conditioning
from layerdiffuse_mcp.errors import ModelError
from layerdiffuse_mcp.families.spec import FamilySpec, LatentFormat

EMBEDDINGS_KEPT = 64
"""Distinct prompts whose embeddings a model keeps; one of 75 tokens takes 0.5 MB on SDXL."""

PIXELS_AT_ONCE = 4 * 1024 * 1024
"""Results are drawn together up to this many pixels; more are drawn one batch after another. One result that has more
is drawn with guidance's two passes in turn."""

UNET, VAE = "unet", "vae"

Embeddings = tuple[Tensor, Tensor | None]
"""The context (1, T, C), and the pooled vector (1, P) where the family has one."""


@dataclass
class StableDiffusion(ABC):
    """A base of the Stable Diffusion line.

    name: the catalogue's. weights: the files of the last drawing, as `identify` found them. pixels_at_once: how many
    pixels may be drawn as one batch. batch: the results in the batch that is being drawn, and the pixels of each.
    """

    name: str
    components: Components
    weights: dict[str, str | None] = field(default_factory=dict[str, "str | None"])
    pixels_at_once: int = PIXELS_AT_ONCE
    batch: tuple[int, int] = (1, 0)
    _embeddings: OrderedDict[Any, Embeddings] = field(default_factory=OrderedDict[Any, Embeddings])

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

    @cached_property
    def sigmas(self) -> SigmaTable:
        """The noise levels that the base was trained with."""
        return sigma_table(zero_snr=self.components.checkpoint.zero_terminal_snr, steps_table=self.spec.steps_table)

    @property
    def prediction(self) -> Prediction:
        """What the denoiser predicts."""
        return PREDICTIONS[self.components.checkpoint.prediction]

    @property
    def unet(self) -> Any:
        """The denoiser, on the device."""
        return self.components.network(UNET)

    @property
    def vae(self) -> Any:
        """The autoencoder, on the device."""
        return self.components.network(VAE)

    def network(self) -> UNetNetwork:
        """The denoiser as samplers see it, on the device, with nothing on it but the LoRAs in use."""
        self.components.onload("denoising")
        return UNetNetwork(self.components.stack(UNET), self.components.lora_patches(UNET))

    def encode_prompt(
        self, prompt: str, *, negative: bool, clip_skip: int | None, emphasis: str, width: int, height: int
    ) -> Conditioning:
        """The conditioning of one prompt, one row; computed once for a distinct prompt and kept."""
        key = (prompt, negative, clip_skip, emphasis, self.components.loras)
        if key not in self._embeddings:
            encoders = cast(tuple[TextEncoder, ...], self.components.networks("text"))
            skip = clip_skip or self.spec.clip_skip
            self._embeddings[key] = self._embed(encoders, prompt, negative=negative, clip_skip=skip, emphasis=emphasis)
            while len(self._embeddings) > EMBEDDINGS_KEPT:
                self._embeddings.popitem(last=False)
        self._embeddings.move_to_end(key)
        return self._conditioning(self._embeddings[key], width, height)

    @torch.inference_mode()
    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the autoencoder's posterior, (B, C, h, w), float32, unscaled.

        pixels: (B, 3, H, W), 0..1; H and W multiples of the latent's downscale.
        """
        vae = self.vae
        posterior = vae.encode((pixels * 2 - 1).to(device=vae.device, dtype=vae.dtype)).latent_dist
        return posterior.mean.float(), posterior.std.float()

    @torch.inference_mode()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Sampled latents (B, C, h, w) as the autoencoder's pictures (B, 3, H, W), 0..1, float32.

        Raises:
            ModelError: the autoencoder's numbers overflowed.
        """
        vae = self.vae
        scaled = to_unscaled(latents.to(device=vae.device, dtype=vae.dtype), self.latent)
        pixels = torch.cat([vae.decode(one[None], return_dict=False)[0].float() for one in scaled])
        if not pixels.isfinite().all():
            raise ModelError(
                "The autoencoder returned numbers that are not finite: they overflow in the current number format. "
                "Set LAYERDIFFUSE_DTYPE to bfloat16 or float32 and repeat the call."
            )
        return (pixels / 2 + 0.5).clamp(0, 1)

    def identify(self, methods: Collection[str], report: Callable[[str], None]) -> None:
        """Note in `weights` which files a drawing by `methods` was made with; see `Provenance.identify`."""
        self.weights = self.components.provenance.identify(self.spec.layer_files([*methods]), report)

    @abstractmethod
    def _embed(
        self, encoders: tuple[TextEncoder, ...], prompt: str, *, negative: bool, clip_skip: int, emphasis: str
    ) -> Embeddings: ...

    @abstractmethod
    def _conditioning(self, embeddings: Embeddings, width: int, height: int) -> Conditioning: ...


class StableDiffusion15(StableDiffusion):
    """One CLIP, whose last hidden state is all that the denoiser reads."""

    def _embed(
        self, encoders: tuple[TextEncoder, ...], prompt: str, *, negative: bool, clip_skip: int, emphasis: str
    ) -> Embeddings:
        return encode_sd15(encoders[0], [prompt], clip_skip, emphasis), None

    def _conditioning(self, embeddings: Embeddings, width: int, height: int) -> Conditioning:
        return Conditioning(embeddings[0])


class StableDiffusionXL(StableDiffusion):
    """Two CLIPs side by side, and a vector of the pooled text and the picture's size."""

    def _embed(
        self, encoders: tuple[TextEncoder, ...], prompt: str, *, negative: bool, clip_skip: int, emphasis: str
    ) -> Embeddings:
        first, second = encoders
        return encode_sdxl(first, second, [prompt], negative=negative, clip_skip=clip_skip, emphasis=emphasis)

    def _conditioning(self, embeddings: Embeddings, width: int, height: int) -> Conditioning:
        context, pooled = embeddings
        return Conditioning(context, sdxl_vector(cast(Tensor, pooled), height, width))


def model_class(spec: FamilySpec) -> type[StableDiffusion]:
    """The class that computes a family, which its card names."""
    return pkgutil.resolve_name(spec.model)
