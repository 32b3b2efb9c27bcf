"""Which models are in memory: loaded once, kept while there is room and work, given back.

    manager = ModelManager(settings)
    model = manager.get(catalog.find("pocket", settings), meter.report, lambda latent: Extent(4, 128 * 128, 128 * 128))
    manager.unload()

Memory is counted in bytes of weights, in the number format in which they run, and of activations, estimated from the
size of the pictures: a level at which one result fits, and then as many of them at once as do. Where the estimate was
wrong, `relieve` takes less for a while.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from layerdiffuse_mcp.engine.device.memory import memory_free, memory_used, release_memory
from layerdiffuse_mcp.engine.device.placement import Placement, place
from layerdiffuse_mcp.engine.layers.adapters import ADAPTERS
from layerdiffuse_mcp.engine.models.additions import Addition
from layerdiffuse_mcp.engine.models.components import Components
from layerdiffuse_mcp.engine.models.model import PIXELS_AT_ONCE, model_class
from layerdiffuse_mcp.engine.models.offload import estimated_sizes, fitting, lower
from layerdiffuse_mcp.engine.models.provenance import Provenance
from layerdiffuse_mcp.engine.types import DiffusionModel
from layerdiffuse_mcp.engine.weights.checkpoint import Checkpoint
from layerdiffuse_mcp.engine.weights.reader import read_checkpoint
from layerdiffuse_mcp.engine.weights.single_file import with_vae
from layerdiffuse_mcp.errors import ModelError, OutOfMemory
from layerdiffuse_mcp.families.entries import ModelEntry, ModelFiles
from layerdiffuse_mcp.families.memory import LEVELS, Level, Sizes
from layerdiffuse_mcp.families.registry import FAMILIES, METHODS
from layerdiffuse_mcp.families.spec import LatentFormat
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.hub.hashes import BackgroundHashes
from layerdiffuse_mcp.hub.inversions import inversion_file
from layerdiffuse_mcp.hub.versions import FileVersion, versions_below
from layerdiffuse_mcp.settings import SHARE, Settings
from layerdiffuse_mcp.wording import in_words

CAREFUL = 10
"""Tasks that get less after memory ran out, before as much is tried again."""


@dataclass(frozen=True)
class Extent:
    """What a task computes at once, in pixels.

    Args:
        results: so many are asked for.
        together: of each of them, those that are denoised as one batch.
        each: of a picture that is encoded or decoded.
        methods: the layer methods that draw it.
    """

    results: int
    together: int
    each: int
    methods: Collection[str] = ()


@dataclass
class _Shortage:
    """Memory ran out with results of `size` pixels: those as large get this level at least, and so many at once.

    results: 0 for one, guidance's two passes in turn. tasks: done since.
    """

    size: int
    level: Level
    results: int
    tasks: int = 0


@dataclass
class _Loaded:
    """A model in memory. versions: of its files as they were read. extent: of its latest task."""

    model: DiffusionModel
    components: Components
    versions: tuple[FileVersion, ...]
    extent: Extent = Extent(0, 0, 0)
    shortage: _Shortage | None = None

    @property
    def short(self) -> _Shortage | None:
        """The shortage that its latest task is as large as."""
        return self.shortage if self.shortage and _size(self.extent) >= self.shortage.size else None


class ModelManager:
    """The models in memory, most recently used last."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._models: OrderedDict[str, _Loaded] = OrderedDict()
        self._hashes = BackgroundHashes()

    @cached_property
    def placement(self) -> Placement:
        """Where models run; decided when it is first needed."""
        return place(self._settings.device, self._settings.dtype)

    @property
    def budget(self) -> int:
        """Bytes that models and what they compute with may take now."""
        free, total = memory_free(self.placement.device)
        limit = self._settings.max_memory
        own = sum(one.components.bytes for one in self._models.values())
        return min(int(limit * 1e9) if limit else int(total * SHARE), free + own)

    def get(
        self,
        entry: ModelEntry,
        report: Callable[[str], None],
        extent: Callable[[LatentFormat], Extent] | None = None,
        loras: Collection[str] = (),
        additions: Mapping[str, Addition] | None = None,
        inversions: Collection[str] = (),
    ) -> DiffusionModel:
        """The model, loaded if it is not, or is of a file that was replaced; the least recently used others make room.

        Where its files and those of `loras` and `inversions` lie is looked up here, once for a task. extent: the
        task's, by the base's latent format; left out, a usual picture's. additions: what is beside the base.

        Raises:
            ModelNotFound: its file, a LoRA or an inversion is not on this machine.
            CheckpointError: its file is damaged or of another kind.
            OutOfMemory: it is too large even layer by layer.
        """
        taught = {name: inversion_file(name, self._settings.models_dir) for name in inversions}
        files = catalog.model_files(entry, self._settings, loras).model_copy(update={"inversions": taught})
        versions = tuple(version for part in (files.base, files.vae) if part for version in versions_below(part))
        if entry.name in self._models and self._models[entry.name].versions != versions:
            self.unload(entry.name)
        if entry.name not in self._models:
            report(f"loading {entry.name}")
            self._models[entry.name] = self._open(entry.name, files, versions)
        loaded = self._models[entry.name]
        components = loaded.components
        components.files = files
        components.provenance.begin()
        self._models.move_to_end(entry.name)
        loaded.extent = extent(components.checkpoint.latent) if extent else _usual(components.checkpoint)
        try:
            components.use_additions(additions or {})
            self._fit(loaded)
            components.load()
        except (ModelError, OutOfMemory):
            self.unload(entry.name)
            raise
        self._hashes.start(*versions[:1])
        return loaded.model

    def _open(self, name: str, files: ModelFiles, versions: tuple[FileVersion, ...]) -> _Loaded:
        """The model, whose networks are not read yet."""
        checkpoint = read_checkpoint(files.base)
        if files.vae is not None:
            checkpoint = with_vae(checkpoint, files.vae)
        provenance = Provenance(self._hashes, versions[0] if os.path.isfile(files.base) else None)
        placement = self.placement.suited(checkpoint.spec.half)
        components = Components(checkpoint, placement, files, provenance)
        return _Loaded(model_class(checkpoint.spec)(name, components), components, versions)

    def _fit(self, loaded: _Loaded) -> None:
        """Make room for one result of its latest task: others go, then parts of it. What is left sets the batch.

        Raises:
            OutOfMemory: it is too large even layer by layer.
        """
        model, components, extent, short = loaded.model, loaded.components, loaded.extent, loaded.short
        weights = _with_layer(components, extent.methods)
        sizes = weights.drawing(extent.together, extent.each)
        asked = self._settings.offload
        others = self._make_room(components, sizes.at("none" if asked == "auto" else asked))
        budget = self.budget
        level = fitting(sizes, budget) if asked == "auto" else asked
        if short is not None:
            level = LEVELS[max(LEVELS.index(level), LEVELS.index(short.level))]
        whole = weights.at(level)
        if whole > budget:
            raise OutOfMemory(
                f"{model.name} takes {in_words(whole)} with offload={level}, and there are "
                f"{in_words(budget)} for models. Raise LAYERDIFFUSE_MAX_MEMORY, set LAYERDIFFUSE_OFFLOAD=auto, "
                "close other programs, or name a smaller model."
            )
        components.level, most = level, sizes.pixels_at_once(level, budget - others)
        if short is not None:
            most = min(most, short.results * extent.together or extent.together // 2)
        model.pixels_at_once, model.batch = min(most, PIXELS_AT_ONCE), 1
        drawn = min(extent.results * extent.together, max(model.pixels_at_once, extent.together))
        components.reserve = max(0, budget - weights.drawing(drawn, extent.each).at("none")) // 2

    def relieve(self) -> bool:
        """After memory ran out: free all of it, and let the model that ran take less for results as large.

        Returns whether there is anything less that it can take.
        """
        loaded = self._latest
        if loaded is None:
            return False
        model, components, extent = loaded.model, loaded.components, loaded.extent
        for name in [name for name in self._models if name != model.name]:
            self.unload(name)
        level = lower(components.level)
        if level is None and model.batch == 1 and model.pixels_at_once < extent.together:
            return False
        components.offload()
        release_memory()
        results = max(model.batch // 2, 1 if level else 0)
        loaded.shortage = _Shortage(_size(extent), level or components.level, results)
        return True

    def reduced(self) -> tuple[str, ...]:
        """After a task: that it got less since memory ran out, in words. After `CAREFUL` such that is forgotten."""
        loaded = self._latest
        short = loaded and loaded.short
        if loaded is None or short is None:
            return ()
        drawn, left = " at this size before: drawn" if short.tasks else ": drawn again", CAREFUL - short.tasks
        short.tasks += 1
        if left == 0:
            loaded.shortage = None
        batch = f"{short.results} at a time" if short.results else "guidance's two passes in turn"
        pace = f" and {batch}" if loaded.extent.together else ""
        soon = f", as are the next {left}" if left else ""
        return (
            f"The memory of {self.placement.title} ran out{drawn} with offload={loaded.components.level}{pace}, "
            f"which is slower{soon}. Smaller or fewer pictures take less.",
        )

    @property
    def _latest(self) -> _Loaded | None:
        """What was used last."""
        return next(reversed(self._models.values()), None)

    def unload(self, name: str | None = None) -> list[str]:
        """Drop one model, or all of them; returns the names of those that were dropped."""
        names = [known for known in self._models if name in (None, known)]
        for known in names:
            del self._models[known]
        release_memory()
        return names

    def close(self) -> None:
        """Drop all models, and stop what is done in the background."""
        self._hashes.close()
        self.unload()

    def forecast(self, entry: ModelEntry) -> str:
        """Which offload level a base would get now with nothing else loaded, for pictures of its native size."""
        if entry.path is None and entry.family is not None:
            sizes = estimated_sizes(FAMILIES[entry.family], self.placement)
        else:
            files = catalog.model_files(entry, self._settings)
            components = Components(read_checkpoint(files.base), self.placement, files)
            sizes = _with_layer(components, _usual(components.checkpoint).methods)
        pixels = entry.native_size**2
        sizes = sizes.drawing(pixels, pixels)
        asked = self._settings.offload
        level = fitting(sizes, self.budget) if asked == "auto" else asked
        return f"offload {level}: about {in_words(sizes.at(level))} at once, of {in_words(self.budget)} for models"

    def status(self) -> dict[str, Any]:
        """Device, number format, memory and the models that are loaded."""
        free, total = memory_free(self.placement.device)
        return {
            "device": self.placement.title,
            "dtype": str(self.placement.dtype).removeprefix("torch."),
            **({"dtype_reason": self.placement.reason} if self.placement.reason else {}),
            "torch": str(torch.__version__),  # of a class of torch's, which would import torch wherever it is unpickled
            "memory_free": free,
            "memory_total": total,
            "memory_budget": self.budget,
            "memory_resident": memory_used(),
            "loaded": [
                {
                    "model": name,
                    "bytes": one.components.bytes,
                    "offload": one.components.level,
                    "layers": one.components.layers,
                }
                for name, one in self._models.items()
            ],
        }

    def _make_room(self, components: Components, needed: int) -> int:
        """Until `needed` bytes of these fit into the budget beside other models, those give up what they keep in
        reserve, then the least recently used of them go. Returns the bytes of those that stay.
        """
        others = {name: one.components for name, one in self._models.items() if one.components is not components}

        def taken() -> int:
            return sum(others[name].bytes for name in others.keys() & self._models.keys())

        for other in others.values():
            if needed + taken() > self.budget:
                other.reserve = 0
        for name in others:
            if needed + taken() > self.budget:
                self.unload(name)
        return taken()


def _size(extent: Extent) -> int:
    """Pixels of its largest piece of work."""
    return max(extent.together, extent.each)


def _usual(checkpoint: Checkpoint) -> Extent:
    """A picture of a base's native size, by the first methods of its family."""
    pixels, spec = checkpoint.native_size**2, checkpoint.spec
    return Extent(1, pixels, pixels, next(iter(spec.routes.values())))


def _with_layer(components: Components, methods: Collection[str]) -> Sizes:
    """What a base's networks take, with the file of one of these methods: that which takes most."""
    used = [METHODS[name] for name in methods if METHODS[name].adapter in ADAPTERS]
    numbers = max((ADAPTERS[one.adapter].numbers(components, one) for one in used), default=0)
    layer = numbers * components.placement.dtype.itemsize
    return components.sizes.beside_denoiser(layer, layer)
