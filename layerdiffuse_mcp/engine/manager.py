"""Models in memory: loaded once, kept while there is room and work, patched in place, given back.

    manager = ModelManager(settings)
    model = manager.get(catalog.find("pocket", settings), meter)
    context = model.embed(["a red apple"], negative=False, ...)
    with model.layered(stage, ...) as networks:
        ...

A `Model` is a base with all that drawing needs: networks, text embeddings already computed, and the
transparency networks of its own family. It knows no request and no file of the result.
"""

import gc
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from layerdiffuse_mcp.engine.checkpoints import Checkpoint, PartName, read_checkpoint
from layerdiffuse_mcp.engine.loras import read_lora
from layerdiffuse_mcp.engine.offsets import OffsetNetwork, read_offsets
from layerdiffuse_mcp.engine.patching import Patch, PatchStack
from layerdiffuse_mcp.engine.placement import Placement, memory_free, memory_used, place
from layerdiffuse_mcp.engine.prompts import encode_sd15, encode_sdxl, sdxl_vector
from layerdiffuse_mcp.engine.sampling.denoiser import Conditioning, Network
from layerdiffuse_mcp.engine.sampling.schedules import SigmaTable, sigma_table
from layerdiffuse_mcp.engine.sharing import SharedNetwork, SharingModel
from layerdiffuse_mcp.engine.transparency import load_decoder, load_offset_encoder
from layerdiffuse_mcp.engine.transparency_networks import OffsetEncoder, TransparentDecoder
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.hub.catalog import ModelEntry
from layerdiffuse_mcp.methods import METHODS, TRANSPARENCY_FILES, Family
from layerdiffuse_mcp.requests import Stage
from layerdiffuse_mcp.settings import Settings

EMBEDDINGS_KEPT = 64
"""Distinct prompts whose embeddings a model keeps; one of 75 tokens takes 0.5 MB on SDXL."""


@dataclass(frozen=True)
class Networks:
    """The denoising network with the layer file on it, and the untouched base for after `stop_at`."""

    layered: Network
    base: Network


@dataclass(frozen=True)
class LoraUse:
    """A LoRA file and its strengths on the denoiser and on the text encoders."""

    path: Path
    strength: float
    text_strength: float


@dataclass
class Model:
    """A base model in memory. Parts are loaded when they are first used and stay until it is dropped."""

    entry: ModelEntry
    settings: Settings
    placement: Placement
    checkpoint: Checkpoint
    used: float = field(default_factory=time.monotonic)
    _embeddings: OrderedDict[Any, tuple[Tensor, Tensor | None]] = field(default_factory=OrderedDict)
    _layer: tuple[str, Patch | SharingModel] | None = None
    _loras: tuple[LoraUse, ...] = ()
    _base_patches: tuple[Patch, ...] = ()

    @property
    def family(self) -> Family:
        """The family, which chooses layer files, encoder and decoder."""
        return self.checkpoint.family

    @cached_property
    def table(self) -> SigmaTable:
        """The noise levels that the base was trained with."""
        return sigma_table(zero_snr=self.checkpoint.zero_terminal_snr, sdxl=self.family == "sdxl")

    @cached_property
    def unet(self) -> Any:
        """The denoiser."""
        return self.checkpoint.unet(self.placement.dtype, self.placement.device)

    @cached_property
    def vae(self) -> Any:
        """The autoencoder."""
        return self.checkpoint.vae(self.placement.vae_dtype(self.family), self.placement.device)

    @cached_property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        """One CLIP (SD1.5) or two (SDXL)."""
        return self.checkpoint.text_encoders(self.placement.text_dtype, self.placement.device)

    @cached_property
    def decoder(self) -> TransparentDecoder:
        """The family's transparent decoder."""
        path = catalog.layer_file(self.entry, TRANSPARENCY_FILES[self.family]["decoder"], self.settings)
        return load_decoder(path, self.placement.vae_dtype(self.family), self.placement.device)

    @cached_property
    def encoder(self) -> OffsetEncoder:
        """The family's offset encoder."""
        path = catalog.layer_file(self.entry, TRANSPARENCY_FILES[self.family]["encoder"], self.settings)
        return load_offset_encoder(path, self.placement.vae_dtype(self.family), self.placement.device)

    @cached_property
    def _stacks(self) -> dict[PartName, PatchStack]:
        names: tuple[PartName, ...] = ("unet", "text_encoder", "text_encoder_2")
        networks = zip(names, (self.unet, *self.text_encoders), strict=False)
        return {name: PatchStack(network, self.checkpoint.parts[name].weights) for name, network in networks}

    def use_loras(self, loras: tuple[LoraUse, ...]) -> None:
        """Make the base's weights its own plus these LoRAs, in order; layer files come on top.

        Raises:
            LayerFileError: a file is damaged or does not fit the base; the base is then as it was loaded.
        """
        if loras == self._loras:
            return
        networks: dict[PartName, nn.Module] = {name: stack.module for name, stack in self._stacks.items()}
        read = [read_lora(lora.path).patches(networks, lora.strength, lora.text_strength) for lora in loras]
        for name, stack in self._stacks.items():
            stack.set(*(patches[name] for patches in read if patches[name].offsets))
        self._base_patches = self._stacks["unet"].patches
        self._loras = loras

    def load(self) -> None:
        """Load whatever drawing needs and is not in memory yet."""
        _ = self.text_encoders, self.unet, self.vae

    def embed(
        self, prompt: str, *, negative: bool, clip_skip: int | None, emphasis: str, width: int, height: int
    ) -> Conditioning:
        """The conditioning of one prompt, one row; computed once for a distinct prompt and kept."""
        key = (prompt, negative and self.family == "sdxl", clip_skip, emphasis, self._loras)
        if key not in self._embeddings:
            self._embeddings[key] = self._encode(prompt, negative, clip_skip, emphasis)
            while len(self._embeddings) > EMBEDDINGS_KEPT:
                self._embeddings.popitem(last=False)
        self._embeddings.move_to_end(key)
        context, pooled = self._embeddings[key]
        return Conditioning(context, None if pooled is None else sdxl_vector(pooled, height, width))

    def _encode(
        self, prompt: str, negative: bool, clip_skip: int | None, emphasis: str
    ) -> tuple[Tensor, Tensor | None]:
        if self.family == "sd15":
            return encode_sd15(self.text_encoders[0], [prompt], clip_skip or 1, emphasis), None
        first, second = self.text_encoders
        return encode_sdxl(first, second, [prompt], negative=negative, clip_skip=clip_skip or 2, emphasis=emphasis)

    @contextmanager
    def layered(
        self, stage: Stage, control: Tensor | None = None, prompts: tuple[Tensor | None, ...] = ()
    ) -> Generator[Networks]:
        """The base with a stage's layer file on it.

        SDXL files stay patched in afterwards, so that the next run of the same method starts at once; the
        base's own weights come back, bit for bit, as soon as they are wanted.

        Args:
            control: (1, 3, H, W) in 0..1, the picture that SD1.5 fg2bg and bg2fg start from.
            prompts: embeddings (1, T, C) of the frames that have a prompt of their own, else None.
        """
        layer = self._read_layer(stage.method)
        if isinstance(layer, SharingModel):
            with SharedNetwork(self.unet, layer, control, prompts) as shared:
                yield Networks(shared.network, shared.base_network)
        else:
            offset = OffsetNetwork(self._stacks["unet"], layer.scaled(stage.layer_weight), self._base_patches)
            yield Networks(offset.network, offset.base_network)

    def _read_layer(self, method_id: str) -> Patch | SharingModel:
        if self._layer is None or self._layer[0] != method_id:
            method = METHODS[method_id]
            path = catalog.layer_file(self.entry, method.file, self.settings)
            self._layer = None
            if method.family == "sd15":
                self._layer = (method_id, SharingModel.read(path, self.unet))
            else:
                self._layer = (method_id, read_offsets(path, self.unet))
        return self._layer[1]

    @property
    def bytes(self) -> int:
        """Memory that the loaded networks take."""
        parts = [self.__dict__.get(name) for name in ("unet", "vae", "text_encoders", "decoder", "encoder")]
        layer = self._layer[1] if self._layer else None
        modules = [*parts, layer if isinstance(layer, nn.Module) else None]
        flat = [m for part in modules if part is not None for m in (part if isinstance(part, tuple) else (part,))]
        return sum(p.numel() * p.element_size() for m in flat for p in cast(nn.Module, m).parameters())


class ModelManager:
    """The models in memory, most recently used last."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._models: OrderedDict[str, Model] = OrderedDict()

    @cached_property
    def placement(self) -> Placement:
        """Where models run; decided when it is first needed."""
        return place(self._settings.device, self._settings.dtype)

    def get(self, entry: ModelEntry, tell: Callable[[str], None]) -> Model:
        """The model, loaded if it is not; the least recently used others make room for it.

        Raises:
            ModelNotFound: its file is not on this machine.
            CheckpointError: its file is damaged or of another kind.
        """
        path = catalog.base_file(entry, self._settings)
        model = self._models.pop(entry.name, None)
        if model is None:
            tell(f"loading {entry.name}")
            checkpoint = read_checkpoint(path)
            self._make_room(entry.bytes or path.stat().st_size)
            model = Model(entry, self._settings, self.placement, checkpoint)
            model.load()
        model.used = time.monotonic()
        self._models[entry.name] = model
        return model

    def unload(self, name: str | None = None) -> list[str]:
        """Drop one model, or all of them; returns the names of those that were dropped."""
        names = [known for known in self._models if name in (None, known)]
        for known in names:
            del self._models[known]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return names

    def status(self) -> dict[str, Any]:
        """Device, number format, memory and the models that are loaded."""
        free, total = memory_free(self.placement.device)
        return {
            "device": self.placement.title,
            "dtype": str(self.placement.dtype).removeprefix("torch."),
            "torch": torch.__version__,
            "memory_free": free,
            "memory_total": total,
            "memory_resident": memory_used(),
            "loaded": [{"model": model.entry.name, "bytes": model.bytes} for model in self._models.values()],
        }

    def _make_room(self, needed: int) -> None:
        """Drop the least recently used models until `needed` bytes more fit into the budget."""
        limit = self._settings.max_memory
        budget = int(limit * 1e9) if limit else int(memory_free(self.placement.device)[1] * 0.8)
        while self._models and needed + sum(model.bytes for model in self._models.values()) > budget:
            self.unload(next(iter(self._models)))
