"""The one list of families, and what follows from it: methods, routes, published files, which family a header is of.

    FAMILIES["sdxl"].native_size, METHODS["layer_xl_fg2ble"].outputs
    families_for(Task.LAYERS)                     # ("sd15",)

A package of somebody else's adds a family by an entry point in the group `layerdiffuse_mcp.families` that names its
`FamilySpec`, as in `mine = "my_package.card:MINE"`.
"""

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Annotated, Any

from pydantic import AfterValidator

from layerdiffuse_mcp.errors import CheckpointError
from layerdiffuse_mcp.families.entries import HubFile, LoraEntry, ModelEntry
from layerdiffuse_mcp.families.flux import FLUX
from layerdiffuse_mcp.families.qwen21 import QWEN21
from layerdiffuse_mcp.families.qwen_layered import QWEN_LAYERED
from layerdiffuse_mcp.families.sd15 import SD15
from layerdiffuse_mcp.families.sdxl import SDXL
from layerdiffuse_mcp.families.spec import FamilySpec, Kind, LayerMethod, Role, Task

GROUP = "layerdiffuse_mcp.families"


def _cards() -> tuple[FamilySpec, ...]:
    others = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return (SDXL, SD15, QWEN_LAYERED, FLUX, QWEN21, *(point.load() for point in others))


FAMILIES: dict[str, FamilySpec] = {card.id: card for card in _cards()}

METHODS: dict[str, LayerMethod] = {name: row for card in FAMILIES.values() for name, row in card.methods.items()}

ROUTES: dict[tuple[Task, str], tuple[str, ...]] = {
    (task, card.id): card.routes[task] for task in Task for card in FAMILIES.values() if task in card.routes
}
"""The methods that fulfil a task in a family, in the order in which they run."""

LAYER_FILES: dict[str, HubFile] = {name: file for card in FAMILIES.values() for name, file in card.files.items()}
"""The published layer and transparency files by name."""

REPACKED: dict[str, tuple[HubFile, ...]] = {
    name: card.repacked.get(name, ()) for card in FAMILIES.values() for name in card.files
}
"""Files that hold the same weights in another layout, by the official name; used where they already are."""

BASES: tuple[ModelEntry, ...] = tuple(base for card in FAMILIES.values() for base in card.bases)
"""The published bases, the default one of each family first."""

EMBEDDED: tuple[ModelEntry, ...] = tuple(base for card in FAMILIES.values() for base in card.embedded)
"""Bases inside the package."""

LORAS: tuple[LoraEntry, ...] = tuple(lora for card in FAMILIES.values() for lora in card.loras)
"""The published LoRAs, of each family and speed the best first."""

KINDS: tuple[Kind, ...] = tuple(kind for card in FAMILIES.values() for kind in card.kinds)
"""How the families' headers are recognised, and files that are like theirs and are none."""

KNOWN_NAMES = frozenset(
    [
        *LAYER_FILES,
        *(file.name for files in REPACKED.values() for file in files),
        *(entry.remote.name for entry in BASES if entry.remote),
        *(lora.remote.name for lora in LORAS if lora.remote and lora.remote.name != "pytorch_lora_weights.safetensors"),
    ]
)
"""Names of published files, but for those that many are called by: what is called so in the user's folder is taken for
it."""

ADAPTERS: tuple[Kind, ...] = tuple(kind for card in FAMILIES.values() for kind in card.adapters)
"""How networks that are added to bases are recognised."""


def _known_family(name: str) -> str:
    if name not in FAMILIES:
        raise ValueError(f"there is no family {name[:80]!r}; use {' or '.join(FAMILIES)}")
    return name


FamilyName = Annotated[str, AfterValidator(_known_family)]
"""Annotation: the id of a family."""


def families_for(task: Task) -> tuple[str, ...]:
    """The families whose layer files can do `task`."""
    return tuple(card.id for card in FAMILIES.values() if task in card.routes)


def titles(families: tuple[str, ...] = ()) -> str:
    """The names of families for people, "SD 1.5 or SDXL"; of all when none are named."""
    return " or ".join(FAMILIES[name].title for name in families or FAMILIES)


def task_inputs(task: Task, family: str) -> tuple[Role, ...]:
    """The pictures that a user has to give for `task` in a family."""
    return FAMILIES[family].given_roles(task)


def folder_family(name: str, pipeline: str, config: Callable[[str], Mapping[str, Any]]) -> FamilySpec:
    """The family of the base in the diffusers folder `name`.

    pipeline: the class that its `model_index.json` names. config: reads the configuration of one of its networks.

    Raises:
        CheckpointError: no family's layer models fit the base; says what it is.
    """
    card = next((card for card in FAMILIES.values() if pipeline in card.pipelines), None)
    problem = card.folder_problem(config(card.denoiser)) if card else f"is a {pipeline[:80]} folder"
    if problem or card is None:
        raise CheckpointError(f"{name} {problem}, and layer models do not fit it; use a plain {titles()} base.")
    return card
