"""The ControlNets and IP-Adapters in the user's models folder, by name.

    entry = find_control("control_v11p_sd15_canny", settings)
    entry.path, entry.family, entry.kind            # where it lies, what it fits, "canny"

None is published here to be fetched: which kinds there are is what files the user has.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from layerdiffuse_mcp.api.fields import near
from layerdiffuse_mcp.errors import ModelNotFound
from layerdiffuse_mcp.families.entries import ControlEntry
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.families.spec import FamilySpec
from layerdiffuse_mcp.hub.folder import read_models_folder
from layerdiffuse_mcp.hub.headers import read_header
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import printable

CONTROLNETS = "ControlNet", ".safetensors, or diffusers folders"
ADAPTERS = "IP-Adapter", ".safetensors"
"""What they are called, in messages and as the folder where they go; and what is read there."""
WIDTHS = (("hidden_size", "image_proj.proj_in.weight"), ("projection_dim", "image_proj.proj.weight"))
"""What of an image encoder's configuration an adapter's width is: of its states, or of its one embedding."""


def controls(settings: Settings) -> tuple[ControlEntry, ...]:
    """All ControlNets that are here; raises ModelError when the user's models.toml cannot be used."""
    return read_models_folder(settings.models_dir).controls


def adapters(settings: Settings) -> tuple[ControlEntry, ...]:
    """All IP-Adapters that are here; raises as `controls` does."""
    return read_models_folder(settings.models_dir).adapters


def find_control(name: str, settings: Settings, family: FamilySpec | None = None) -> ControlEntry:
    """The ControlNet of that name.

    Raises:
        ModelNotFound: there is none, or it does not fit bases of the family; it names those that do, or where they go.
    """
    return _find(name, controls(settings), CONTROLNETS, settings, family)


def find_adapter(name: str, settings: Settings, family: FamilySpec | None = None) -> ControlEntry:
    """The IP-Adapter of that name; raises as `find_control` does."""
    return _find(name, adapters(settings), ADAPTERS, settings, family)


def find_encoder(adapter: ControlEntry, settings: Settings) -> Path:
    """The folder of the image encoder that an IP-Adapter goes with: the one of the width that it reads.

    Raises:
        ModelNotFound: there is none.
    """
    shapes = read_header(adapter.path).shapes
    field, key = next(pair for pair in WIDTHS if pair[1] in shapes)
    width = shapes[key][-1]
    for folder in read_models_folder(settings.models_dir).encoders:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.get(field) == width:
            return folder
    raise ModelNotFound(
        f"The IP-Adapter {adapter.name} goes with an image encoder whose {field} is {width}, and none is on this "
        "machine. Put its folder (config.json and model.safetensors, as published beside the adapter) into "
        f"{printable(settings.models_dir / 'ip-adapter')}."
    )


def _find(
    name: str, entries: Sequence[ControlEntry], files: tuple[str, str], settings: Settings, family: FamilySpec | None
) -> ControlEntry:
    title, layouts = files
    fitting = [entry.name for entry in entries if family is None or entry.family == family.id]
    whose = f" for {family.title} models" if family else ""
    known = near(name, fitting) if fitting else f"None{whose} is on this machine."
    folder = f"{title}s ({layouts}) go into {printable(settings.models_dir / title.lower())}."
    for spelled in (str, str.casefold):
        for entry in entries:
            if spelled(name) != spelled(entry.name):
                continue
            if family is None or entry.family == family.id:
                return entry
            fits = f"for {FAMILIES[entry.family].title} models" if entry.family else "of a kind that is not known"
            raise ModelNotFound(f"The {title} {entry.name} is {fits}, and {family.title} models need another. {known}")
    raise ModelNotFound(f"There is no {title} '{printable(name, 80)}'{whose}. {known} {folder}")
