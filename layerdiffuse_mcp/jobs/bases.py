"""The base that a task is planned for: its card, what it lacks, its LoRAs; where it cannot, who can instead.

family = family_of(entry, request.task, settings)
downloads = lacking(entry, request.task, methods, settings)
"""

import os
from collections.abc import Callable, Sequence

from layerdiffuse_mcp.api.plan import Download, PlannedLora
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.errors import InvalidRequest, ModelNotFound
from layerdiffuse_mcp.families.entries import LoraEntry, ModelEntry
from layerdiffuse_mcp.families.registry import FAMILIES, families_for, titles
from layerdiffuse_mcp.families.spec import FamilySpec, Task
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.hub.headers import read_header
from layerdiffuse_mcp.hub.identify import identify
from layerdiffuse_mcp.hub.libraries import check_libraries
from layerdiffuse_mcp.hub.remedies import cannot
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.text.emphasis import extract_loras
from layerdiffuse_mcp.wording import printable


def family_of(entry: ModelEntry, task: Task, settings: Settings) -> FamilySpec:
    """The card of a base that can do the task.

    Raises:
        ModelNotFound: its family does not do the task, and models that do are named; or its file is missing.
        InvalidRequest: it is of no family.
    """
    family = _card(entry, lambda: _who_can(task, settings), settings)
    if task not in family.routes:
        raise ModelNotFound(f"{cannot(entry, task)}{_who_can(task, settings)}")
    return family


def with_codec(entry: ModelEntry, settings: Settings) -> FamilySpec:
    """The card of a base that has transparent latents; raises InvalidRequest for another, ModelNotFound as `_card`."""
    able = titles(tuple(card.id for card in FAMILIES.values() if card.encodes_alpha))
    family = _card(entry, lambda: f". Name a model of the family {able}.", settings)
    if not family.encodes_alpha:
        raise InvalidRequest(f"{family.title} models have no transparent latents. Name a model of the family {able}.")
    return family


def _card(entry: ModelEntry, advice: Callable[[], str], settings: Settings) -> FamilySpec:
    if entry.family is None:
        path = catalog.base_file(entry, settings)
        header = read_header(path) if os.path.isfile(path) else None
        what = identify(header.shapes, header.metadata).title if header else "a folder of no family that is known"
        raise InvalidRequest(f"The model {entry.name} is {what}: layer models do not fit it{advice()}")
    return FAMILIES[entry.family]


def lacking(entry: ModelEntry, task: Task | None, methods: Sequence[str], settings: Settings) -> tuple[Download, ...]:
    """What a base with its transparency files and the layer files of `methods` lacks, which has to be fetched first.

    Raises:
        ModelNotFound: a file is not here and may not be fetched, or what draws with the base is not installed.
    """
    can_fetch = settings.auto_download and (entry.path or entry.published)
    try:
        check_libraries(entry, settings)
        if can_fetch and not catalog.unconverted(entry, settings, methods):
            missing = catalog.missing(entry, settings, methods)
            return (Download(model=entry.name, methods=tuple(methods)),) if missing else ()
        catalog.base_file(entry, settings, methods)
        for name in FAMILIES[entry.family].layer_files(methods) if entry.family else ():
            catalog.layer_file(entry, name, settings, methods)
        return ()
    except ModelNotFound as error:
        others = f" {_now(task, settings)}" if task else ""
        raise ModelNotFound(f"{error}{others}".rstrip()) from None


def _able(task: Task, settings: Settings) -> list[str]:
    """The models that can do a task with what is on this machine."""
    models = catalog.models(settings)
    return [model.name for model in models if model.prepared and catalog.tasks(model, settings).get(task)]


def _now(task: Task, settings: Settings) -> str:
    can = _able(task, settings)
    return f"Models that can do it now: {', '.join(can)}." if can else ""


def _who_can(task: Task, settings: Settings) -> str:
    """The rest of a sentence that says what cannot be done: with which model it can."""
    if now := _now(task, settings):
        return f". {now}"
    families = " or ".join(families_for(task))
    return (
        f", and no model on this machine can do it yet. It needs a base of the family {families} and its "
        "layer files: prepare_model fetches them; list_models shows what there is."
    )


def named_loras(
    request: GenerateRequest, family: FamilySpec, settings: Settings
) -> list[tuple[LoraEntry, PlannedLora]]:
    """The LoRAs that the prompts name, in order; of one that is named twice, the last strengths."""
    texts = (request.prompt, *request.layer_prompts.values())
    tags = {tag.name: tag for text in texts for tag in extract_loras(text)[1]}
    if tags and "loras" not in family.accepts:
        raise InvalidRequest(
            f"<lora:{printable(next(iter(tags)), 80)}> would change nothing: {family.title} models take no LoRAs. "
            "Leave it out of the prompt."
        )
    found: list[tuple[LoraEntry, PlannedLora]] = []
    for tag in tags.values():
        entry = catalog.find_lora(tag.name, settings)
        if entry.path is None and not (settings.auto_download and entry.remote):
            catalog.lora(tag.name, settings)  # says how to fetch it
        if entry.family not in (None, family.id):
            raise InvalidRequest(
                f"The LoRA {entry.name} is for {entry.family} models, and the model is {family.id}. "
                f"Name a {entry.family} model or leave the LoRA out."
            )
        named = PlannedLora(name=entry.name, strength=tag.strength, text_strength=tag.text_strength)
        found.append((entry, named))
    return found
