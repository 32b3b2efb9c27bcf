"""Which models are in memory: loaded once, kept while there is room and work, given back.

    manager = ModelManager(settings)
    model = manager.get(catalog.find("pocket", settings), meter.report)
    manager.fit(model, together=4 * 128 * 128, each=128 * 128)
    manager.unload()

Memory is counted in bytes of weights, in the number format in which they run, and of activations, estimated from the
size of the pictures. Where the estimate was wrong, `relieve` takes less from then on.
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
from layerdiffuse_mcp.engine.models.additions import Addition
from layerdiffuse_mcp.engine.models.components import Components
from layerdiffuse_mcp.engine.models.model import model_class
from layerdiffuse_mcp.engine.models.offload import estimated_sizes, fitting, lower
from layerdiffuse_mcp.engine.models.provenance import Provenance
from layerdiffuse_mcp.engine.types import DiffusionModel
from layerdiffuse_mcp.engine.weights.reader import read_checkpoint
from layerdiffuse_mcp.engine.weights.single_file import with_vae
from layerdiffuse_mcp.errors import ModelError, OutOfMemory
from layerdiffuse_mcp.families.entries import ModelEntry, ModelFiles
from layerdiffuse_mcp.families.memory import LEVELS, Level
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.hub.hashes import BackgroundHashes
from layerdiffuse_mcp.hub.inversions import inversion_file
from layerdiffuse_mcp.hub.versions import FileVersion, versions_below
from layerdiffuse_mcp.settings import SHARE, Settings
from layerdiffuse_mcp.wording import in_words


@dataclass
class _Loaded:
    """A model in memory. versions: of its files as they were read. at_least: the level below which memory ran out."""

    model: DiffusionModel
    components: Components
    versions: tuple[FileVersion, ...]
    at_least: Level = "none"


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
        loras: Collection[str] = (),
        additions: Mapping[str, Addition] | None = None,
        inversions: Collection[str] = (),
    ) -> DiffusionModel:
        """The model, loaded if it is not, or is of a file that was replaced; the least recently used others make room.

        Where its files and those of `loras` and `inversions` lie is looked up here, once for a task. additions: what is
        beside the base.

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
        native = components.checkpoint.native_size
        try:
            self.fit(loaded.model, native**2, native**2)
            components.load()
            components.use_additions(additions or {})
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

    def fit(self, model: DiffusionModel, together: int, each: int) -> None:
        """Make room for drawing `together` pixels as one batch, in pictures of `each`: others go, then parts of it.

        Raises:
            OutOfMemory: it is too large even layer by layer.
        """
        loaded = self._models[model.name]
        components = loaded.components
        sizes = components.sizes.drawing(
            min(together, max(model.pixels_at_once, each)), each, components.placement.dtype.itemsize
        )
        asked = self._settings.offload
        self._make_room(components, sizes.at("none" if asked == "auto" else asked))
        budget = self.budget
        level = fitting(sizes, budget) if asked == "auto" else asked
        whole = components.sizes.at(level)
        if whole > budget:
            raise OutOfMemory(
                f"{model.name} takes {in_words(whole)} with offload={level}, and there are "
                f"{in_words(budget)} for models. Raise LAYERDIFFUSE_MAX_MEMORY, set LAYERDIFFUSE_OFFLOAD=auto, "
                "close other programs, or name a smaller model."
            )
        components.level = LEVELS[max(LEVELS.index(loaded.at_least), LEVELS.index(level))]
        components.reserve = max(0, budget - sizes.at("none")) // 2

    def relieve(self) -> str | None:
        """After memory ran out: free all of it, and let the model that ran take less from now on.

        Returns what is different then, in words, or None when no more can be done.
        """
        loaded = next(reversed(self._models.values()), None)
        if loaded is None:
            return None
        model, components = loaded.model, loaded.components
        for name in [name for name in self._models if name != model.name]:
            self.unload(name)
        level, (count, each) = lower(components.level), model.batch
        if level is None and count == 1 and model.pixels_at_once < each:
            return None
        components.offload()
        release_memory()
        loaded.at_least = components.level = level or components.level
        together = ""
        if level is None or count > 1:
            model.pixels_at_once = each * count // 2
            together = f" and {count // 2} at a time" if count > 1 else " and guidance's two passes in turn"
        return (
            f"The memory of {self.placement.title} ran out: drawn again with "
            f"offload={components.level}{together}, which is slower. Smaller or fewer pictures take less."
        )

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
            sizes = Components(read_checkpoint(files.base), self.placement, files).sizes
        pixels = entry.native_size**2
        sizes = sizes.drawing(pixels, pixels, self.placement.dtype.itemsize)
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

    def _make_room(self, components: Components, needed: int) -> None:
        """Until `needed` bytes of these fit into the budget beside other models, those give up what they keep in
        reserve, then the least recently used of them go.
        """
        others = {name: one.components for name, one in self._models.items() if one.components is not components}

        def crowded() -> bool:
            return needed + sum(others[name].bytes for name in others.keys() & self._models.keys()) > self.budget

        for other in others.values():
            if crowded():
                other.reserve = 0
        for name in others:
            if crowded():
                self.unload(name)
