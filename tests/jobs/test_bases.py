"""What a refusal says to fetch is what the task lacks."""

import re
from collections.abc import Sequence

import pytest

from layerdiffuse_mcp.errors import ModelNotFound
from layerdiffuse_mcp.families.registry import BASES, ROUTES
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.jobs.bases import lacking
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import in_words
from tests.hub.files import SD15_KEYS, SDXL_KEYS, tensors, write

WISHES = [
    *((base.name, task, route) for base in BASES for (task, family), route in ROUTES.items() if family == base.family),
    ("juggernaut-xl-v6", Task.TRANSPARENT, ("layer_xl_transparent_conv",)),  # of no route
]
FILES = {"sdxl": SDXL_KEYS, "sd15": SD15_KEYS}


@pytest.mark.parametrize("here", [False, True], ids=["nothing is here", "the base is here"])
@pytest.mark.parametrize(("name", "task", "methods"), WISHES)
def test_what_is_said_to_be_fetched_is_enough_and_as_large_as_said(
    name: str, task: Task, methods: Sequence[str], here: bool, settings: Settings
):
    entry = catalog.find(name, settings)
    if here and entry.remote:
        write(settings.models_dir / entry.remote.name, tensors(FILES[str(entry.family)]))
        entry = catalog.find(name, settings)
    with pytest.raises(ModelNotFound) as refused:
        lacking(entry, task, methods, settings)
    text = str(refused.value)
    told = re.search(
        r"models prepare (\S+?)(?: --task (\w+))?`(?: or .* and task='(\w+)')? \((.+?)(?: or more)? from", text
    )
    assert told is not None
    model, flag, argument, size = told.groups()
    fetched = ROUTES[Task(flag), str(entry.family)] if flag else None
    assert (model, argument) == (name, flag)
    assert fetched is None or {*methods} <= {*fetched}
    assert size == in_words(sum(file.bytes or 0 for file in catalog.missing(entry, settings, fetched)))
    pocket = catalog.find("pocket", settings)
    assert ("pocket" in text) == (task in catalog.tasks(pocket, settings))
