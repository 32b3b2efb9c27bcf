"""Whether what computes with a model is installed: asked before anything of the model is fetched.

check_libraries(entry, settings)       # raises ModelNotFound, which says how to install what is missing
"""

from layerdiffuse_mcp import installed
from layerdiffuse_mcp.families.entries import LoraEntry, ModelEntry
from layerdiffuse_mcp.families.matting import MattingNetwork
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.settings import Settings


def unmet(entry: ModelEntry | LoraEntry | MattingNetwork, settings: Settings) -> str:
    """The extra that a model needs and this machine lacks; "" for none, and for a base that other machines draw with.

    Each worker looks again, with its own libraries.
    """
    match entry:
        case MattingNetwork():
            extra = entry.extra
        case ModelEntry(family=str(family)) if settings.backend != "ray":
            extra = FAMILIES[family].extra
        case _:
            extra = ""
    return extra if extra and installed.lacking(extra) else ""


def check_libraries(entry: ModelEntry | LoraEntry | MattingNetwork, settings: Settings) -> None:
    """Make sure that a model can be computed with here.

    Raises:
        ModelNotFound: what that takes is not installed; says how to.
    """
    if extra := unmet(entry, settings):
        installed.check(extra, entry.name)


def needs(entry: ModelEntry | MattingNetwork, settings: Settings) -> str:
    """The end of a description: what has to be installed first; "" where nothing has."""
    extra = unmet(entry, settings)
    return f"; needs {' and '.join(installed.lacking(extra))} first: {installed.remedy(extra)}" if extra else ""
