"""What licences are known to say of a base and of the layer files that it works with.

layer_licences(entry)        # {"layer_xl_fg2ble.safetensors": "creativeml-openrail-m", ...}
is_free(entry)               # False where one of them forbids commercial use
"""

from layerdiffuse_mcp.families.entries import ModelEntry, is_commercial
from layerdiffuse_mcp.families.registry import EMBEDDED, FAMILIES

UNKNOWN = "unknown"


def layer_licences(entry: ModelEntry) -> dict[str, str]:
    """The licences of a base's layer and transparency files; one under a published name is taken for that file."""
    if entry.family is None:
        return {}
    published = {name: file.licence for name, file in FAMILIES[entry.family].files.items()}
    if entry.name in [embedded.name for embedded in EMBEDDED]:  # whose layer files are its own
        published = dict.fromkeys(published, entry.licence)
    return {name: licence for name, licence in published.items() if licence}


def is_free(entry: ModelEntry) -> bool:
    """Whether no licence is known to forbid commercial use: the base's own, or its layer files'."""
    known = (entry.licence, *(file.licence for file in entry.published), *layer_licences(entry).values())
    return all(map(is_commercial, known))
