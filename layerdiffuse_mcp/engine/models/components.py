"""A base's networks by name: built from the checkpoint, patched, and on the device while their phase lasts.

    components = Components(read_checkpoint(path), placement, files)
    components.use_loras((LoraUse(path, 1.0, 1.0),))
    unet = components.network("unet")           # on the device, as is all of its phase
    decoder = components.read(name, load, phase="pictures")
    components.level = "in_turn"                # from now on only one phase's networks at a time

The offload level says which networks leave the device when those of another phase are asked for (see `offload.py`).
What a network computes, and what its files mean, is not known here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from layerdiffuse_mcp.engine.device.placement import Placement
from layerdiffuse_mcp.engine.models.additions import Addition
from layerdiffuse_mcp.engine.models.offload import PHASES, BlockByBlock, phase_dtype, sizes_of, with_addition
from layerdiffuse_mcp.engine.models.provenance import Provenance
from layerdiffuse_mcp.engine.weights.checkpoint import Checkpoint, Part
from layerdiffuse_mcp.engine.weights.lora import read_lora
from layerdiffuse_mcp.engine.weights.patcher import Patch, PatchStack
from layerdiffuse_mcp.errors import CheckpointError, LayerFileError
from layerdiffuse_mcp.families.entries import ModelFiles
from layerdiffuse_mcp.families.memory import Level, Sizes
from layerdiffuse_mcp.families.spec import Phase
from layerdiffuse_mcp.hub.headers import read_header
from layerdiffuse_mcp.hub.versions import FileVersion, file_version, versions_below

T = TypeVar("T")


@dataclass(frozen=True)
class LoraUse:
    """A LoRA file and its strengths on the denoiser and on the text encoders."""

    path: Path
    strength: float
    text_strength: float


class Components:
    """The networks of one base. They are built when they are first used, or all at once by `load`.

    files: where layer and transparency files lie; set anew for each task.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        placement: Placement,
        files: ModelFiles | None = None,
        provenance: Provenance | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.placement = placement
        self.files = files or ModelFiles(base=checkpoint.path)
        self.provenance = provenance or Provenance()
        self.onloaded: Phase | None = None
        """The phase whose networks alone are on the device, as far as the level asks for that."""
        self._level: Level = "none"
        self._reserve = 0
        self._stacks: dict[str, PatchStack] = {}
        self._blocks: dict[str, BlockByBlock] = {}
        self._read: dict[Phase | None, dict[str, tuple[FileVersion, Any, tuple[Tensor, ...]]]] = {}
        self._loras: tuple[LoraUse, ...] = ()
        self._lora_files: tuple[FileVersion, ...] = ()
        self._lora_patches: dict[str, tuple[Patch, ...]] = {}
        self._additions: dict[str, tuple[Addition, tuple[FileVersion, ...], Part]] = {}

    @property
    def level(self) -> Level:
        """How much leaves the device while it is not used. May be changed between two runs."""
        return self._level

    @level.setter
    def level(self, level: Level) -> None:
        if level != self._level:
            if "layers" in (level, self._level):
                self._offload("denoising")
            self._level, self.onloaded = level, None

    @property
    def reserve(self) -> int:
        """Bytes that the weights of one layer file may take while another is on, so that they come back at once."""
        return self._reserve

    @reserve.setter
    def reserve(self, room: int) -> None:
        self._reserve = room if self.level == "none" else 0
        for name in self._names("denoising").keys() & self._stacks.keys():
            self._stacks[name].reserve = self._reserve

    @property
    def sizes(self) -> Sizes:
        """What the networks take in memory, those beside them too; an absent transparency file counts nothing."""
        sizes = self._base_sizes
        for addition, _, part in self._additions.values():
            sizes = with_addition(sizes, part, addition.phase, self.placement)
        return sizes

    @cached_property
    def _base_sizes(self) -> Sizes:
        codec = self.checkpoint.spec.codec
        paths = [self.files.layers.get(name) for name in codec.files] if codec else []
        return sizes_of(self.checkpoint, self.placement, sum(read_header(path).count for path in paths if path))

    @cached_property
    def _denoiser_config(self) -> Mapping[str, Any]:
        return self._part(self.checkpoint.spec.denoiser).empty(self.checkpoint.path.name).config

    @property
    def parameters(self) -> int:
        """Parameters of the denoiser."""
        return self.sizes.denoiser // self.placement.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Memory that the networks take which are on the device now."""
        weights = (weight for files in self._read.values() for _, _, read in files.values() for weight in read)
        return sum(stack.bytes for stack in self._stacks.values()) + sum(w.numel() * w.element_size() for w in weights)

    @property
    def layers(self) -> list[str]:
        """Names of the layer and transparency files that are kept."""
        return sorted(name for files in self._read.values() for name in files)

    @property
    def loras(self) -> tuple[object, ...]:
        """What stands for the LoRAs that are on: equal as long as their files and strengths are."""
        return self._loras, self._lora_files

    def load(self) -> None:
        """Build whatever is not in memory yet, as far as it stays there.

        Raises:
            CheckpointError: the file is damaged or incomplete.
        """
        for phase in PHASES:
            if self.level == "none":
                self.onload(phase)
            for name in self._names(phase):
                self.stack(name)

    def offload(self) -> None:
        """Let all networks leave the device; they come back when they are asked for."""
        for phase in PHASES:
            self._offload(phase)

    def network(self, name: str) -> Any:
        """The network of that name, on the device."""
        self.onload(self._phase(name))
        return self.stack(name).module

    def networks(self, phase: Phase) -> tuple[Any, ...]:
        """All networks of the base's own of a phase, on the device."""
        self.onload(phase)
        return tuple(self.stack(name).module for name in self.checkpoint.spec.names(phase))

    def stack(self, name: str) -> PatchStack:
        """A network with its patches, wherever it is. To be offloaded, it is made of the mapped file."""
        if name not in self._stacks:
            phase, device = self._phase(name), self.placement.device
            dtype, stays = self.dtype(phase), self.level == "none"
            network = self._built(name, dtype, device) if stays else self._built(name)
            for buffer in network.buffers():
                buffer.data = buffer.to(device)  # they are small, and stay there
            stack = self._stacks[name] = PatchStack(network, self._part(name).weights)
            if phase == "denoising":
                stack.reserve = self._reserve
            if not stays:
                stack.offload(dtype=dtype)
        return self._stacks[name]

    def dtype(self, phase: Phase) -> torch.dtype:
        """The number format of a phase's networks."""
        spec, fits = self.checkpoint.spec, self.checkpoint.vae_fits_float16
        return phase_dtype(spec, self.placement, phase, fits_float16=fits)

    def onload(self, phase: Phase) -> None:
        """Have a phase's networks on the device, and at the lower levels no others."""
        if self.level != "none":
            for other in PHASES:
                if other != phase:
                    self._offload(other)
        for name in self._names(phase):
            stack, device = self.stack(name), self.placement.device
            if phase == "denoising" and self.level == "layers":
                if name not in self._blocks:
                    self._blocks[name] = BlockByBlock(stack, device)
                stack.onload(device, self._blocks[name].rest)
            else:
                stack.onload(device)
        self.onloaded = phase

    def watch(self, name: str) -> Any:
        """The network of that name, wherever it is: from now on, computing with any part of it onloads its phase.

        For a network that others call, as a pipeline does; it is to be asked for once.
        """
        phase = self.checkpoint.spec.component(name).phase

        def onload(*_: object) -> None:
            if self.onloaded != phase:
                self.onload(phase)

        network = self.stack(name).module
        for part in network.modules():
            part.register_forward_pre_hook(onload)
        return network

    def read(self, name: str, read: Callable[[Path], T], *, phase: Phase | None = None, only: bool = False) -> T:
        """What `read` makes of the layer or transparency file `name`; kept, and read again once the file is another.

        phase: with whose networks it leaves the device; None for what takes no memory. only: no other is kept beside.

        Raises:
            ModelNotFound: there is no such file on this machine.
            LayerFileError: it is damaged or does not fit.
        """
        version = file_version(path := self.files.layer(name))
        self.provenance.use(name)
        kept = self._read.setdefault(phase, {})
        if only:
            for other in kept.keys() - {name}:
                del kept[other]
        if name not in kept or kept[name][0] != version:
            kept.pop(name, None)  # before the other is read: its memory is needed
            what = read(path)
            kept[name] = version, what, tuple(what.parameters()) if isinstance(what, nn.Module) else ()
            self.provenance.note(name, version)
        return kept[name][1]

    def use_loras(self, loras: tuple[LoraUse, ...]) -> None:
        """Make the base's weights its own plus these LoRAs, in order; layer files come on top.

        Raises:
            LayerFileError: a file is damaged or does not fit the base. Whatever is raised, no LoRA is on then.
        """
        files = tuple(file_version(lora.path) for lora in loras)
        if (loras, files) == self.loras:
            return
        names = (*self.checkpoint.spec.names("denoising"), *self.checkpoint.spec.names("text"))
        stacks = {name: self.stack(name) for name in names}
        networks: dict[str, nn.Module] = {name: stack.module for name, stack in stacks.items()}
        try:
            read = [read_lora(lora.path).patches(networks, lora.strength, lora.text_strength) for lora in loras]
            for name, stack in stacks.items():
                stack.set(*(patches[name] for patches in read if patches[name].offsets))
        except BaseException:
            for stack in stacks.values():
                stack.drop()
            self.onloaded = None
            self._lora_patches, self._loras, self._lora_files = {}, (), ()
            self.provenance.note_loras(())
            raise
        self._lora_patches = {name: stack.patches for name, stack in stacks.items()}
        self._loras, self._lora_files = loras, files
        self.provenance.note_loras(files)

    def use_additions(self, additions: Mapping[str, Addition]) -> None:
        """Have these networks, by key, beside those of their phases, and no others.

        Raises:
            ModelError: a file is damaged or does not fit the base.
        """
        versions = {key: versions_below(addition.path) for key, addition in additions.items()}
        for key in [key for key, (_, version, _) in self._additions.items() if versions.get(key) != version]:
            del self._additions[key]
            self._stacks.pop(key, None)
            if blocks := self._blocks.pop(key, None):
                blocks.remove()
        for key, addition in additions.items():
            if key not in self._additions:
                part = addition.read(addition.path, self._denoiser_config)
                self._additions[key] = addition, versions[key], part
                self.onloaded = None
        self.provenance.note_additions({one.name: self._weights_file(key) for key, one in additions.items()})

    def _weights_file(self, key: str) -> FileVersion | None:
        """The one file that holds the weights of an addition; None where several do."""
        _, versions, part = self._additions[key]
        read = part.weights.files
        found = [version for version in versions if version.path in read]
        return found[0] if len(found) == 1 else None

    def lora_patches(self, name: str) -> tuple[Patch, ...]:
        """The patches of the LoRAs on a network, below those of layer files."""
        return self._lora_patches.get(name, ())

    def _names(self, phase: Phase) -> dict[str, None]:
        added = (key for key, (addition, *_) in self._additions.items() if addition.phase == phase)
        return dict.fromkeys([*self.checkpoint.spec.names(phase), *added])

    def _phase(self, name: str) -> Phase:
        return self._additions[name][0].phase if name in self._additions else self.checkpoint.spec.component(name).phase

    def _part(self, name: str) -> Part:
        return self._additions[name][2] if name in self._additions else self.checkpoint.parts[name]

    def _built(self, name: str, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Any:
        if name not in self._additions:
            return self.checkpoint.network(name, dtype, device)
        try:
            return self._part(name).build(dtype, device, f"The file of {name}")
        except CheckpointError as error:
            raise LayerFileError(f"{name} does not fit {self.checkpoint.path.name}. {error}") from error

    def _offload(self, phase: Phase) -> None:
        for name in self._names(phase):
            if name in self._stacks:
                self._stacks[name].offload()
            if name in self._blocks:
                self._blocks.pop(name).remove()
        self._read.pop(phase, None)
        if self.onloaded == phase:
            self.onloaded = None
