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
from layerdiffuse_mcp.hub.folder import read_models_folder
from layerdiffuse_mcp.hub.headers import read_header
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import printable

WIDTHS = (("hidden_size", "image_proj.proj_in.weight"), ("projection_dim", "image_proj.proj.weight"))
"""What of an image encoder's configuration an adapter's width is: of its states, or of its one embedding."""


def controls(settings: Settings) -> tuple[ControlEntry, ...]:
    """All ControlNets that are here; raises ModelError when the user's models.toml cannot be used."""
    return read_models_folder(settings.models_dir).controls


def adapters(settings: Settings) -> tuple[ControlEntry, ...]:
    """All IP-Adapters that are here; raises as `controls` does."""
    return read_models_folder(settings.models_dir).adapters


def find_control(name: str, settings: Settings) -> ControlEntry:
    """The ControlNet of that name; raises ModelNotFound naming the near ones, or where files of them go."""
    return _find(name, controls(settings), "ControlNet", "ControlNets (.safetensors, or diffusers folders)", settings)


def find_adapter(name: str, settings: Settings) -> ControlEntry:
    """The IP-Adapter of that name; raises as `find_control` does."""
    return _find(name, adapters(settings), "IP-Adapter", "IP-Adapters (.safetensors)", settings)


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


def _find(name: str, entries: Sequence[ControlEntry], title: str, files: str, settings: Settings) -> ControlEntry:
    for spelled in (str, str.casefold):
        for entry in entries:
            if spelled(name) == spelled(entry.name):
                return entry
    known = near(name, [entry.name for entry in entries]) if entries else "None is on this machine."
    folder = printable(settings.models_dir / title.lower())
    raise ModelNotFound(f"There is no {title} '{printable(name, 80)}'. {known} {files} go into {folder}.")
