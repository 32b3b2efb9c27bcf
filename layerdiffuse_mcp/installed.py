"""How this program was installed: the command that starts it, and the one that brings what is missing here.

    f"`{program()} doctor`"                     # under uvx: `uvx --torch-backend auto layerdiffuse-mcp doctor`
    check("cutout", "Cutting out photographs")  # raises ModelNotFound, which names the command

Nothing is imported to see whether it is here.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from layerdiffuse_mcp.errors import ModelNotFound

PACKAGE = "layerdiffuse-mcp"
UVX = "uvx --torch-backend auto"
EXTRAS = {"cutout": ("onnx", "onnxruntime"), "layered": ("transformers",), "ray": ("ray",)}
"""What each extra of the package brings to a user."""
COMMANDS = {
    "uvx": f"{UVX} --from {{}} {PACKAGE}",
    "uv tool": "uv tool install --torch-backend auto {}",
    "pipx": f"pipx inject {PACKAGE} {{}}",
    "pip": "pip install {}",
}
"""How an extra comes, by what installed the package."""


def program(extra: str = "") -> str:
    """How a command line begins that runs this program; under uvx one with an extra, where one is named."""
    if _installer() != "uvx":
        return PACKAGE
    extras = _and_those_here(extra)
    return COMMANDS["uvx"].format(extras) if "[" in extras else f"{UVX} {PACKAGE}"


def lacking(extra: str) -> tuple[str, ...]:
    """The packages of an extra that are not here."""
    return tuple(name for name in EXTRAS[extra] if find_spec(name) is None)


def install(extra: str) -> str:
    """The command that brings an extra; what is here stays."""
    how = _installer()
    return f"{program(extra)} --version" if how == "uvx" else COMMANDS[how].format(_and_those_here(extra))


def remedy(extra: str) -> str:
    """What to do to have an extra, as the end of a sentence."""
    if _installer() == "uvx":
        return f"start this program as `{program(extra)}`"
    return f"run `{install(extra)}` and restart the server"


def check(extra: str, what: str, otherwise: str = "") -> None:
    """Make sure that an extra is here.

    Raises:
        ModelNotFound: `what` needs it, and it is not; says how to install it, and what can be done `otherwise`.
    """
    if names := lacking(extra):
        lacks = f"{what} needs {' and '.join(names)}, which this installation lacks: {remedy(extra)}."
        raise ModelNotFound(f"{lacks} {otherwise}".rstrip())


def _and_those_here(extra: str) -> str:
    """The package with an extra and with all that are here, as a shell takes it."""
    extras = sorted({extra, *(other for other in EXTRAS if not lacking(other))} - {""})
    return f"'{PACKAGE}[{','.join(extras)}]'" if extras else PACKAGE


def _installer() -> str:
    """What made the environment that runs this, as far as it left a mark there; else pip."""
    folder = Path(sys.prefix)
    if folder.parent.name.startswith("archive-v"):  # of uv's cache, where uvx keeps environments
        return "uvx"
    if os.path.isfile(folder / "uv-receipt.toml"):
        return "uv tool"
    return "pipx" if os.path.isfile(folder / "pipx_metadata.json") else "pip"
