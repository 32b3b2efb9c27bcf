"""What to say of published files that are not on this machine: how they are fetched, brought by hand, or made.

f"{name} is not here. Fetch it: {command(entry.name, name)} ({source(remote)}). {by_hand(remote, settings)}"
"""

import shlex
from pathlib import Path

from layerdiffuse_mcp.families.entries import HubFile, ModelEntry, is_commercial
from layerdiffuse_mcp.families.registry import FAMILIES, KNOWN_NAMES, METHODS, ROUTES
from layerdiffuse_mcp.families.spec import TOOLS, LayerMethod, Task
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import in_words, printable


def by_hand(remote: HubFile, settings: Settings) -> str:
    """A sentence that says where a published file may be put, instead of being fetched."""
    folder = printable(settings.models_dir)
    if remote.pinned:
        return f"Or copy the cache folder of {remote.repo} from a machine that has it."
    if remote.is_converted:
        return "Or bring the file from elsewhere, and name it in `layerdiffuse-mcp models convert PATH`."
    if remote.name in KNOWN_NAMES:
        return f"Or put {remote.name} into {folder}."
    return f"Or put the file anywhere and give its path in {folder}/models.toml, in place of repo and file."


def cannot(entry: ModelEntry, task: Task) -> str:
    """The beginning of a sentence: that a base does not do a task, and what it does."""
    able = dict.fromkeys(TOOLS[one] for one in (FAMILIES[entry.family].routes if entry.family else ()))
    return f"The model {entry.name} does not do {task.value} ({TOOLS[task]}): it is for {', '.join(able)}"


def terms(licence: str | None) -> str:
    """The licence of what is fetched, and what that means for it."""
    said = f"licence {licence or 'not known'}"
    return said if is_commercial(licence) else f"{said}, not for commercial use: prepare_model asks its user first"


def command(name: str, file: str = "") -> str:
    """How to fetch a model or a LoRA, and of its layer files at least `file`."""
    said = f"`layerdiffuse-mcp models prepare {shlex.quote(name)}`"
    method = method_of(file)
    task = next((task for (task, _), route in ROUTES.items() if method and method.id in route), None)
    if method and task is None:
        return said  # the tool fetches what tasks need, and none needs this file by itself
    arguments = f" with model={name!r}" + (f" and task='{task.value}'" if task else "")
    return f"{said} or the tool prepare_model{arguments}"


def method_of(file: str) -> LayerMethod | None:
    """The method whose layer file that is."""
    return next((method for method in METHODS.values() if file and method.file == file), None)


def source(remote: HubFile) -> str:
    """How large a file is, and from where it comes."""
    size = in_words(remote.bytes) if remote.bytes else "size not known"
    return f"{size} from the hub repository {remote.repo}"


def to_convert(remote: HubFile, pickle: Path | None) -> str:
    """A sentence that says how a file is made of the pickle that is published instead of it, where that is here."""
    where = "which is on this machine" if pickle else f"in the hub repository {remote.repo}"
    named = shlex.quote(printable(pickle)) if pickle else "PATH"
    return (
        f"It is made of the pickle {remote.converted_from}, {where}: `layerdiffuse-mcp models convert {named}` makes "
        "it, and runs nothing that a pickle can carry."
    )
