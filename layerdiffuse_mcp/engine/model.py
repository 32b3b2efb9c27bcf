"""A base model in memory, with all that drawing needs: networks, prompt embeddings, transparency networks.

    model = Model(entry, settings, placement, read_checkpoint(path))
    context = model.embed("a red apple", negative=False, ...)
    with model.layered(stage, ...) as networks:
        ...

Its networks are on the device when they are asked for; `offload` says which others leave it then (see `offload.py`).
A network that was asked for is there until one of another turn is. It knows no request and no file of the result.
"""

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from layerdiffuse_mcp.engine.checkpoints import NEEDED, Checkpoint, PartName
from layerdiffuse_mcp.engine.loras import read_lora
from layerdiffuse_mcp.engine.offload import PARTS, BlockByBlock, Level, Sizes, Turn, sizes_of
from layerdiffuse_mcp.engine.offsets import OffsetNetwork, read_offsets
from layerdiffuse_mcp.engine.patching import Patch, PatchStack
from layerdiffuse_mcp.engine.placement import Placement
from layerdiffuse_mcp.engine.prompts import encode_sd15, encode_sdxl, sdxl_vector
from layerdiffuse_mcp.engine.sampling.denoiser import Conditioning, Network
from layerdiffuse_mcp.engine.sampling.schedules import SigmaTable, sigma_table
from layerdiffuse_mcp.engine.sharing import SharedNetwork, SharingModel
from layerdiffuse_mcp.engine.text_encoder import TextEncoder
from layerdiffuse_mcp.engine.transparency import load_decoder, load_offset_encoder
from layerdiffuse_mcp.engine.transparency_networks import OffsetEncoder, TransparentDecoder
from layerdiffuse_mcp.errors import ModelNotFound
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.hub.catalog import ModelEntry
from layerdiffuse_mcp.hub.hashes import BackgroundHashes
from layerdiffuse_mcp.hub.headers import read_header
from layerdiffuse_mcp.hub.versions import FileVersion, file_version
from layerdiffuse_mcp.methods import METHODS, TRANSPARENCY_FILES, Family
from layerdiffuse_mcp.recipes import BASE
from layerdiffuse_mcp.requests import Stage
from layerdiffuse_mcp.settings import Settings

EMBEDDINGS_KEPT = 64
"""Distinct prompts whose embeddings a model keeps; one of 75 tokens takes 0.5 MB on SDXL."""

SHORT = 10
"""Digits of a file's SHA-256 that name it in a recipe, as A1111's model hash does."""

PIXELS_AT_ONCE = 4 * 1024 * 1024
"""Results are drawn together up to this many pixels; more are drawn one batch after another. One result that has more
is drawn with guidance's two passes in turn."""

T = TypeVar("T")


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
    """A base model. Its networks are read when they are first used, or all at once by `load`.

    files: the versions of the files that it was made of, the base's first. weights: of what was drawn with last the
    first ten digits of the SHA-256 by file name, the base's as `BASE`; None for a folder, and for a file that was
    replaced meanwhile. pixels_at_once: how many pixels may be drawn as one batch. batch: the results in the batch that
    is being drawn, and the pixels of each.
    """

    entry: ModelEntry
    settings: Settings
    placement: Placement
    checkpoint: Checkpoint
    files: tuple[FileVersion, ...] = ()
    hashes: BackgroundHashes = field(default_factory=BackgroundHashes)
    weights: dict[str, str | None] = field(default_factory=dict[str, "str | None"])
    pixels_at_once: int = PIXELS_AT_ONCE
    batch: tuple[int, int] = (1, 0)
    _offload: Level = "none"
    _spare: int = 0
    _blocks: BlockByBlock | None = None
    _stacks: dict[PartName, PatchStack] = field(default_factory=dict[PartName, PatchStack])
    _used: dict[str, FileVersion] = field(default_factory=dict[str, FileVersion])
    """The versions that were last read of layer and transparency files, by the files' published names."""
    _transparency: dict[str, tuple[FileVersion, nn.Module]] = field(default_factory=dict)
    _embeddings: OrderedDict[Any, tuple[Tensor, Tensor | None]] = field(default_factory=OrderedDict)
    _layers: dict[str, tuple[FileVersion, Patch | SharingModel]] = field(default_factory=dict)
    _loras: tuple[LoraUse, ...] = ()
    _lora_files: tuple[FileVersion, ...] = ()
    _base_patches: tuple[Patch, ...] = ()

    @property
    def family(self) -> Family:
        """The family, which chooses layer files, encoder and decoder."""
        return self.checkpoint.family

    @cached_property
    def table(self) -> SigmaTable:
        """The noise levels that the base was trained with."""
        return sigma_table(zero_snr=self.checkpoint.zero_terminal_snr, sdxl=self.family == "sdxl")

    @property
    def unet(self) -> Any:
        """The denoiser, on the device."""
        self._take("denoising")
        return self._stack("unet").module

    @property
    def vae(self) -> Any:
        """The autoencoder, on the device."""
        self._take("pictures")
        return self._stack("vae").module

    @property
    def text_encoders(self) -> tuple[TextEncoder, ...]:
        """One CLIP (SD1.5) or two (SDXL), on the device."""
        self._take("text")
        return tuple(cast(TextEncoder, self._stack(name).module) for name in self._parts("text"))

    @property
    def decoder(self) -> TransparentDecoder:
        """The family's transparent decoder, on the device."""
        return self._transparent("decoder", load_decoder)

    @property
    def encoder(self) -> OffsetEncoder:
        """The family's offset encoder, on the device."""
        return self._transparent("encoder", load_offset_encoder)

    @property
    def offload(self) -> Level:
        """How much of the model leaves the device while it is not used. May be changed between two runs."""
        return self._offload

    @offload.setter
    def offload(self, level: Level) -> None:
        if level != self._offload:
            if "layers" in (level, self._offload):
                self._leave("denoising")
            self._offload = level

    @property
    def spare(self) -> int:
        """Bytes that the weights of one layer file may take while another is on, so that they come back at once."""
        return self._spare

    @spare.setter
    def spare(self, room: int) -> None:
        self._spare = room if self.offload == "none" else 0
        if "unet" in self._stacks:
            self._stacks["unet"].spare = self._spare

    @cached_property
    def sizes(self) -> Sizes:
        """What the networks take in memory."""
        return sizes_of(self.checkpoint, self.placement, sum(map(self._numbers, ("encoder", "decoder"))))

    @property
    def parameters(self) -> int:
        """Parameters of the denoiser."""
        return self.sizes.denoiser // self.placement.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Memory that the networks take which are on the device now."""
        kept = (*self._transparency.values(), *self._layers.values())
        others = [network for _, network in kept if isinstance(network, nn.Module)]
        weights = (weight for module in others for weight in module.parameters())
        return sum(stack.bytes for stack in self._stacks.values()) + sum(w.numel() * w.element_size() for w in weights)

    def load(self) -> None:
        """Read whatever drawing needs and is not in memory yet, as far as it stays there.

        Raises:
            CheckpointError: the file is damaged or incomplete.
        """
        for turn in PARTS:
            if self.offload == "none":
                self._take(turn)
            for name in self._parts(turn):
                self._stack(name)

    def leave(self) -> None:
        """Let all networks leave the device; they come back when they are asked for."""
        for turn in PARTS:
            self._leave(turn)

    def use_loras(self, loras: tuple[LoraUse, ...]) -> None:
        """Make the base's weights its own plus these LoRAs, in order; layer files come on top.

        Raises:
            LayerFileError: a file is damaged or does not fit the base. Whatever is raised, no LoRA is on then.
        """
        files = tuple(file_version(lora.path) for lora in loras)
        if (loras, files) == (self._loras, self._lora_files):
            return
        names: list[PartName] = self._parts("denoising") + self._parts("text")
        stacks: dict[PartName, PatchStack] = {name: self._stack(name) for name in names}
        networks: dict[PartName, nn.Module] = {name: stack.module for name, stack in stacks.items()}
        try:
            read = [read_lora(lora.path).patches(networks, lora.strength, lora.text_strength) for lora in loras]
            for name, stack in stacks.items():
                stack.set(*(patches[name] for patches in read if patches[name].offsets))
        except BaseException:
            for stack in stacks.values():
                stack.drop()
            self._base_patches, self._loras, self._lora_files = (), (), ()
            raise
        self._base_patches = stacks["unet"].patches
        self._loras, self._lora_files = loras, files
        self.hashes.start(*files)

    def embed(
        self, prompt: str, *, negative: bool, clip_skip: int | None, emphasis: str, width: int, height: int
    ) -> Conditioning:
        """The conditioning of one prompt, one row; computed once for a distinct prompt and kept."""
        key = (prompt, negative and self.family == "sdxl", clip_skip, emphasis, self._loras, self._lora_files)
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
        encoders = self.text_encoders
        if self.family == "sd15":
            return encode_sd15(encoders[0], [prompt], clip_skip or 1, emphasis), None
        first, second = encoders
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
            prompts: embeddings (1 or N, T, C), N results, of the frames that have a prompt of their own, else None.
        """
        unet, stack = self.unet, self._stack("unet")
        layer = self._read_layer(stage.method, unet)
        if isinstance(layer, SharingModel):

            def weight(name: str) -> Tensor:
                return stack.weight(name, self.placement.device)

            with SharedNetwork(unet, layer, control, prompts, weight=weight) as shared:
                yield Networks(shared.network, shared.base_network)
        else:
            offset = OffsetNetwork(stack, layer.scaled(stage.layer_weight), self._base_patches)
            yield Networks(offset.network, offset.base_network)

    def _read_layer(self, method_id: str, unet: Any) -> Patch | SharingModel:
        """An SDXL file stays mapped and costs nothing; an SD 1.5 one takes memory, so there is one at a time."""
        method = METHODS[method_id]
        path = catalog.layer_file(self.entry, method.file, self.settings)
        if method.family == "sd15":
            for other in self._layers.keys() - {method.file}:
                del self._layers[other]
        read = SharingModel.read if method.family == "sd15" else read_offsets
        return self._current(self._layers, method.file, path, lambda: read(path, unet))

    def _current(self, kept: dict[str, tuple[FileVersion, T]], name: str, path: Path, read: Callable[[], T]) -> T:
        """What was read of the file that `name` stands for now; read again once that is another."""
        version = file_version(path)
        if kept.get(name, (None,))[0] != version:
            kept.pop(name, None)  # before the other is read: its memory is needed
            kept[name] = version, read()
            self._used[name] = version
            self.hashes.start(version)
        return kept[name][1]

    def identify(self, methods: Iterable[str], report: Callable[[str], None]) -> None:
        """Tell in `weights` which files `methods` were drawn with.

        What has not been read for its checksum yet is waited for, and `report` told so; raising from it ends that.
        """
        base = self.files[0] if self.files and self.checkpoint.path.is_file() else None
        names = {METHODS[method].file for method in methods} | set(TRANSPARENCY_FILES[self.family].values())
        used = {name: version for name, version in self._used.items() if name in names}
        used |= {file.path.name: file for file in self._lora_files}
        hashes = {
            name: version and self.hashes.sha256(version, report) for name, version in {BASE: base, **used}.items()
        }
        self.weights = {name: sha256 and sha256[:SHORT] for name, sha256 in hashes.items()}

    def _parts(self, turn: Turn) -> list[PartName]:
        return [name for name in PARTS[turn] if name in NEEDED[self.family]]

    def _stack(self, name: PartName) -> PatchStack:
        """A network with its patches. Where it is to be offloaded it is made of the mapped file and put away."""
        if name not in self._stacks:
            dtype, device = self._dtype(name), self.placement.device
            stays = self.offload == "none"
            network = self.checkpoint.network(name, dtype, device) if stays else self.checkpoint.network(name)
            self._stacks[name] = PatchStack(network, self.checkpoint.parts[name].weights)
            if name == "unet":
                self._stacks[name].spare = self._spare
            if not stays:
                self._stacks[name].put_away(dtype=dtype)
        return self._stacks[name]

    def _dtype(self, name: PartName) -> torch.dtype:
        return {
            "unet": self.placement.dtype,
            "vae": self.placement.vae_dtype(self.family, fits_float16=self.checkpoint.vae_fits_float16),
        }.get(name, self.placement.text_dtype)

    def _take(self, turn: Turn) -> None:
        """Have a turn's networks on the device, and at the lower levels no others."""
        if self.offload != "none":
            for other in PARTS:
                if other != turn:
                    self._leave(other)
        for name in self._parts(turn):
            stack, device = self._stack(name), self.placement.device
            if name == "unet" and self.offload == "layers":
                self._blocks = self._blocks or BlockByBlock(stack, device)
                stack.bring(device, self._blocks.rest)
            else:
                stack.bring(device)

    def _leave(self, turn: Turn) -> None:
        for name in self._parts(turn):
            if name in self._stacks:
                self._stacks[name].put_away()
        if turn == "pictures":
            self._transparency.clear()
        if turn == "denoising":
            if self._blocks is not None:
                self._blocks.remove()
                self._blocks = None
            if self.family == "sd15":
                self._layers.clear()

    def _transparent(self, kind: str, load: Any) -> Any:
        self._take("pictures")
        path = self._transparency_file(kind)
        return self._current(
            self._transparency,
            TRANSPARENCY_FILES[self.family][kind],
            path,
            lambda: load(path, self._dtype("vae"), self.placement.device),
        )

    def _transparency_file(self, kind: str) -> Path:
        return catalog.layer_file(self.entry, TRANSPARENCY_FILES[self.family][kind], self.settings)

    def _numbers(self, kind: str) -> int:
        """Parameters in a transparency file; 0 when it is not here, which is for whoever needs it to say."""
        try:
            return read_header(self._transparency_file(kind)).count
        except ModelNotFound:
            return 0
