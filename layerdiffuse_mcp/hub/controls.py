"""The ControlNets in the user's models folder, by name.

    entry = find_control("control_v11p_sd15_canny", settings)
    entry.path, entry.family, entry.kind            # where it lies, what it fits, "canny"

None is published here to be fetched: which kinds there are is what files the user has.
"""

from layerdiffuse_mcp.api.fields import near
from layerdiffuse_mcp.errors import ModelNotFound
from layerdiffuse_mcp.families.entries import ControlEntry
from layerdiffuse_mcp.hub.folder import read_models_folder
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import printable


def controls(settings: Settings) -> tuple[ControlEntry, ...]:
    """All ControlNets that are here; raises ModelError when the user's models.toml cannot be used."""
    return read_models_folder(settings.models_dir).controls


def find_control(name: str, settings: Settings) -> ControlEntry:
    """The ControlNet of that name; raises ModelNotFound naming the near ones, or where files of them go."""
    entries = controls(settings)
    for spelled in (str, str.casefold):
        for entry in entries:
            if spelled(name) == spelled(entry.name):
                return entry
    known = near(name, [entry.name for entry in entries]) if entries else "None is on this machine."
    folder = printable(settings.models_dir / "controlnet")
    raise ModelNotFound(
        f"There is no ControlNet '{printable(name, 80)}'. {known} ControlNets (.safetensors, or diffusers folders) go "
        f"into {folder}."
    )
