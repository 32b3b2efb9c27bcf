"""How SD 1.5 and SDXL compute: prompts to conditioning, latents to predictions.

    model = model_class(checkpoint.spec)(entry.name, Components(checkpoint, placement, files))
    conditioning = model.encode_prompt("a red apple", negative=False, ...)
    output = model.network()(x, timestep, conditioning)

Pictures and latents are `model.py`'s. The two differ in how a prompt is encoded, which is all that their classes say. A
network that was asked for is on the device until one of another phase is (see `components.py`). No plan, no sampler
and no file is known here.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from torch import Tensor

from layerdiffuse_mcp.engine.models.additions import ENCODER, adapter_key, control_key
from layerdiffuse_mcp.engine.models.model import Model
from layerdiffuse_mcp.engine.models.networks import UNetNetwork
from layerdiffuse_mcp.engine.sampling.prediction import PREDICTIONS, Prediction
from layerdiffuse_mcp.engine.sampling.schedules import SigmaTable, sigma_table
from layerdiffuse_mcp.engine.text.clip import TextEncoder
from layerdiffuse_mcp.engine.text.clip_embeddings import encode_sd15, encode_sdxl, sdxl_vector
from layerdiffuse_mcp.engine.text.clip_vision import VisionEncoder
from layerdiffuse_mcp.engine.text.inversions import Taught, read_inversions
from layerdiffuse_mcp.engine.types import Conditioning
from layerdiffuse_mcp.engine.weights.ip_adapter import IPAdapter
from layerdiffuse_mcp.hub.versions import FileVersion, file_version

EMBEDDINGS_KEPT = 64
"""Distinct prompts whose embeddings a model keeps; one of 75 tokens takes 0.5 MB on SDXL."""

UNET = "unet"

Embeddings = tuple[Tensor, Tensor | None]
"""The context (1, T, C), and the pooled vector (1, P) where the family has one."""


@dataclass
class StableDiffusion(Model, ABC):
    """A base of the Stable Diffusion line."""

    _embeddings: OrderedDict[Any, Embeddings] = field(default_factory=OrderedDict[Any, Embeddings])
    _taught: tuple[Taught, ...] = ()
    _inversions: tuple[tuple[str, FileVersion], ...] = ()

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

    def network(self) -> UNetNetwork:
        """The denoiser as samplers see it, on the device, with nothing on it but the LoRAs in use."""
        self.components.onload("denoising")
        return UNetNetwork(self.components.stack(UNET), self.components.lora_patches(UNET))

    def use_inversions(self, names: Sequence[str]) -> None:
        """Have these textual inversions, and no others, in the place of their names in prompts.

        Raises:
            LayerFileError: a file is damaged or does not fit the base.
        """
        paths = {name: self.components.files.inversions[name] for name in names}
        named = tuple((name, file_version(path)) for name, path in paths.items())
        if named != self._inversions:
            encoders = cast(tuple[TextEncoder, ...], self.components.networks("text"))
            widths = [encoder.embeddings.token_embedding.weight.shape[1] for encoder in encoders]
            self._inversions, self._taught = (), ()
            self._taught = read_inversions(paths, widths) if paths else ()
            self._inversions = named
        self.components.provenance.note_inversions([version for _, version in named])

    def control(self, name: str) -> Any:
        """The ControlNet of that name, one of those in use, on the device with the denoiser."""
        return self.components.network(control_key(name))

    def adapter(self, name: str) -> IPAdapter:
        """The IP-Adapter of that name, likewise."""
        return self.components.network(adapter_key(name))

    def reads_states(self, name: str) -> bool:
        """Whether the IP-Adapter of that name reads the encoder's states, as plus ones do."""
        return cast(IPAdapter, self.components.stack(adapter_key(name)).module).is_plus

    def image_encoder(self) -> VisionEncoder:
        """The encoder that the IP-Adapter in use goes with, on the device with the text encoders."""
        return self.components.network(ENCODER)

    def encode_prompt(
        self, prompt: str, *, negative: bool, clip_skip: int | None, emphasis: str, width: int, height: int
    ) -> Conditioning:
        """The conditioning of one prompt, one row; computed once for a distinct prompt and kept."""
        key = (prompt, negative, clip_skip, emphasis, self.components.loras, self._inversions)
        if key not in self._embeddings:
            encoders = cast(tuple[TextEncoder, ...], self.components.networks("text"))
            skip = clip_skip or self.spec.clip_skip
            self._embeddings[key] = self._embed(encoders, prompt, negative=negative, clip_skip=skip, emphasis=emphasis)
            while len(self._embeddings) > EMBEDDINGS_KEPT:
                self._embeddings.popitem(last=False)
        self._embeddings.move_to_end(key)
        return self._conditioning(self._embeddings[key], width, height)

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
        [taught] = self._taught or ({},)
        return encode_sd15(encoders[0], [prompt], clip_skip, emphasis, taught), None

    def _conditioning(self, embeddings: Embeddings, width: int, height: int) -> Conditioning:
        return Conditioning(embeddings[0])


class StableDiffusionXL(StableDiffusion):
    """Two CLIPs side by side, and a vector of the pooled text and the picture's size."""

    def _embed(
        self, encoders: tuple[TextEncoder, ...], prompt: str, *, negative: bool, clip_skip: int, emphasis: str
    ) -> Embeddings:
        first, second = encoders
        taught = cast(tuple[Taught, Taught] | None, self._taught or None)
        return encode_sdxl(
            first, second, [prompt], negative=negative, clip_skip=clip_skip, emphasis=emphasis, inversions=taught
        )

    def _conditioning(self, embeddings: Embeddings, width: int, height: int) -> Conditioning:
        context, pooled = embeddings
        return Conditioning(context, sdxl_vector(cast(Tensor, pooled), height, width))
