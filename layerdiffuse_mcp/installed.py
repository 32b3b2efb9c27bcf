"""How this program was installed: the command that starts it, and the one that brings what is missing here.

    f"`{program()} doctor`"                     # under uvx: `uvx --torch-backend auto layerdiffuse-mcp doctor`
    check("cutout", "Cutting out photographs")  # raises ModelNotFound, which names the command

Nothing is imported to see whether it is here.
"""

import sys
from collections.abc import Collection
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


def program() -> str:
    """How a command line that runs this program begins."""
    if _installer() != "uvx":
        return PACKAGE
    here = [extra for extra in EXTRAS if not lacking(extra)]
    return COMMANDS["uvx"].format(_with(here)) if here else f"{UVX} {PACKAGE}"


def lacking(extra: str) -> tuple[str, ...]:
    """The packages of an extra that are not here."""
    return tuple(name for name in EXTRAS[extra] if find_spec(name) is None)


def install(extra: str) -> str:
    """The command that brings an extra; under uvx the one that starts this program with it. What is here stays."""
    return COMMANDS[_installer()].format(_with({extra, *(other for other in EXTRAS if not lacking(other))}))


def remedy(extra: str) -> str:
    """What to do to have an extra, as the end of a sentence."""
    if _installer() == "uvx":
        return f"start the server as `{install(extra)}`"
    return f"run `{install(extra)}` and restart the server"


def check(extra: str, what: str, otherwise: str = "") -> None:
    """Make sure that an extra is here.

    Raises:
        ModelNotFound: `what` needs it, and it is not; says how to install it, and what can be done `otherwise`.
    """
    if names := lacking(extra):
        lacks = f"{what} needs {' and '.join(names)}, which this installation lacks: {remedy(extra)}."
        raise ModelNotFound(f"{lacks} {otherwise}".rstrip())


def _with(extras: Collection[str]) -> str:
    return f"'{PACKAGE}[{','.join(sorted(extras))}]'"


def _installer() -> str:
    """What made the environment that runs this, as far as it left a mark there; else pip."""
    folder = Path(sys.prefix)
    if folder.parent.name.startswith("archive-v"):  # of uv's cache, where uvx keeps environments
        return "uvx"
    if (folder / "uv-receipt.toml").is_file():
        return "uv tool"
    return "pipx" if (folder / "pipx_metadata.json").is_file() else "pip"
