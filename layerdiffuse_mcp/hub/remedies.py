"""What to say of published files that are not on this machine: how they are fetched, brought by hand, or made.

f"{name} is not here. Fetch it: {command(entry.name)} ({source(remote)}). {by_hand(remote, settings)}"
"""

import shlex
from collections.abc import Collection
from pathlib import Path

from layerdiffuse_mcp.families.entries import HubFile, ModelEntry, is_commercial
from layerdiffuse_mcp.families.registry import FAMILIES, KNOWN_NAMES, METHODS
from layerdiffuse_mcp.families.spec import TOOLS, LayerMethod, Task
from layerdiffuse_mcp.installed import program
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import in_words, printable


def by_hand(remote: HubFile, settings: Settings) -> str:
    """A sentence that says where a published file may be put, instead of being fetched."""
    folder = printable(settings.models_dir)
    if remote.pinned:
        return f"Or copy the cache folder of {remote.repo} from a machine that has it."
    if remote.is_converted:
        return f"Or bring the file from elsewhere, and name it in `{program()} models convert PATH`."
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


def command(name: str, task: Task | None = None, *, all_files: bool = False) -> str:
    """How to fetch a model or a LoRA; of a base what one task needs, or all layer files, which the tool never does."""
    said = f"`{program()} models prepare {shlex.quote(name)}{f' --task {task.value}' if task else ''}`"
    if all_files:
        return said
    return f"{said} or the tool prepare_model with model={name!r}" + (f" and task='{task.value}'" if task else "")


def task_of(family: str, methods: Collection[str]) -> Task | None:
    """The task that needs these methods and the fewest beside them, if there is one."""
    routes = FAMILIES[family].routes
    able = [task for task, route in routes.items() if set(methods) <= set(route)]
    return min(able, key=lambda task: len(routes[task]), default=None)


def method_of(file: str) -> LayerMethod | None:
    """The method whose layer file that is."""
    return next((method for method in METHODS.values() if file and method.file == file), None)


def source(*remotes: HubFile) -> str:
    """How large files are, and from where they come."""
    known = [remote.bytes for remote in remotes if remote.bytes]
    size = in_words(sum(known)) + (" or more" if len(known) < len(remotes) else "") if known else "size not known"
    repos = list(dict.fromkeys(remote.repo for remote in remotes))
    return f"{size} from the hub {'repository' if len(repos) == 1 else 'repositories'} {' and '.join(repos)}"


def to_convert(remote: HubFile, pickle: Path | None) -> str:
    """A sentence that says how a file is made of the pickle that is published instead of it, where that is here."""
    where = "which is on this machine" if pickle else f"in the hub repository {remote.repo}"
    named = shlex.quote(printable(pickle)) if pickle else "PATH"
    return (
        f"It is made of the pickle {remote.converted_from}, {where}: `{program()} models convert {named}` makes "
        "it, and runs nothing that a pickle can carry."
    )
