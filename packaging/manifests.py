"""Writes what registries and clients read of this package: `python packaging/manifests.py`, from the root.

    server.json                       the MCP registry
    packaging/mcpb/                   Claude Desktop's bundle: manifest.json and pyproject.toml
    packaging/claude-code/            Claude Code's plugin: .claude-plugin/plugin.json
    .claude-plugin/marketplace.json   where Claude Code finds that plugin

All of it is made from pyproject.toml, the settings and the table of tools; a test holds it current.
"""

import json
import sys
import tomllib
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs
from pydantic.fields import FieldInfo

from layerdiffuse_mcp.settings import Settings, variable

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME, VERSION = PROJECT["name"], PROJECT["version"]
HOME = PROJECT["urls"]["Homepage"]
AUTHOR = PROJECT["authors"][0]["name"]
REGISTRY_NAME = f"io.github.{HOME.removeprefix('https://github.com/')}"
TITLE = "LayerDiffuse: real transparency"
SUMMARY = "Draws pictures and layers with real transparency (RGBA) on your own machine: LayerDiffuse"
SERVER = "layerdiffuse"
"""What the server is called in a client's list."""


class Asked(NamedTuple):
    """A setting that a bundle's user is asked for; where `default` or `description` is None, the setting's own is said.

    Each needs a default: what has none a client hands over unreplaced, as `${user_config.NAME}`.
    """

    kind: str
    title: str
    default: str | None = None
    description: str | None = None


ASKED = {
    "output_dir": Asked("directory", "Folder for pictures", "~/Pictures/layerdiffuse"),
    "read_dirs": Asked(
        "directory",
        "Folder with your pictures",
        "~/Pictures",
        "Folder that pictures may be read from, with all below it; the folder for pictures always",
    ),
    "model": Asked("string", "Model"),
    "device": Asked("string", "Device", None, "Where models run: auto, cpu, cuda or mps"),
    "auto_download": Asked("boolean", "Downloads"),
    "history": Asked("boolean", "History"),
}


def files() -> Iterator[tuple[Path, str]]:
    """Every file, and what it has to hold."""
    for path, value in (
        ("server.json", registry_entry()),
        ("packaging/mcpb/manifest.json", bundle_manifest()),
        ("packaging/claude-code/.claude-plugin/plugin.json", plugin()),
        (".claude-plugin/marketplace.json", marketplace()),
    ):
        yield ROOT / path, json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    yield ROOT / "packaging/mcpb/pyproject.toml", bundle_project()


def registry_entry() -> dict[str, Any]:
    """The entry of the MCP registry, schema 2025-12-11."""
    return {
        "$schema": "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json",
        "name": REGISTRY_NAME,
        "title": TITLE,
        "description": SUMMARY,
        "version": VERSION,
        "repository": {"url": HOME, "source": "github"},
        "websiteUrl": HOME,
        "packages": [
            {
                "registryType": "pypi",
                "registryBaseUrl": "https://pypi.org",
                "identifier": NAME,
                "version": VERSION,
                "runtimeHint": "uvx",
                "runtimeArguments": [{"type": "named", "name": "--torch-backend", "value": "auto"}],
                "transport": {"type": "stdio"},
                "environmentVariables": [_variable(name, field) for name, field in Settings.model_fields.items()],
            }
        ],
    }


def _variable(name: str, field: FieldInfo) -> dict[str, Any]:
    """A setting as an input of the registry. What depends on the machine has no default there."""
    described: dict[str, Any] = {"name": variable(name), "description": field.description, "format": _format(field)}
    if choices := _choices(field):
        described["choices"] = choices
    if not (field.default is None or field.default == () or _of_this_machine(field.default)):
        described["default"] = _text(field.default)
    return described


def _format(field: FieldInfo) -> str:
    kinds = {*_kinds(field.annotation)}
    if bool in kinds:
        return "boolean"
    if kinds & {int, float}:
        return "number"
    return "filepath" if Path in kinds and tuple not in kinds else "string"


def _kinds(annotation: Any) -> Iterator[Any]:
    """A type and all that it is made of."""
    yield typing.get_origin(annotation) or annotation
    for part in typing.get_args(annotation):
        yield from _kinds(part)


def _choices(field: FieldInfo) -> list[str]:
    return [*typing.get_args(field.annotation)] if typing.get_origin(field.annotation) is typing.Literal else []


def _of_this_machine(value: object) -> bool:
    return isinstance(value, Path) and value.is_relative_to(platformdirs.user_data_path("layerdiffuse"))


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def bundle_manifest() -> dict[str, Any]:
    """The manifest of the MCPB bundle, version 0.4: a thin one, whose packages uv brings."""
    from layerdiffuse_mcp.server.tools import TOOLS

    main = "${__dirname}/server/main.py"
    return {
        "manifest_version": "0.4",
        "name": NAME,
        "display_name": TITLE,
        "version": VERSION,
        "description": SUMMARY,
        "long_description": PROJECT["description"] + ". The first start fetches Python packages of a gigabyte or more; "
        "a small model is among them, larger ones are fetched when they are asked for.",
        "author": {"name": AUTHOR, "url": HOME},
        "repository": {"type": "git", "url": HOME},
        "homepage": HOME,
        "documentation": PROJECT["urls"]["Documentation"],
        "support": PROJECT["urls"]["Issues"],
        "icon": "icon.png",
        "icons": [{"src": "icon.png", "size": "512x512"}],
        "server": {
            "type": "uv",
            "entry_point": "server/main.py",
            "mcp_config": {
                "command": "uv",
                "args": ["run", "--project", "${__dirname}", main],
                "env": {variable(name): f"${{user_config.{name}}}" for name in ASKED},
            },
        },
        "tools": [{"name": tool.name, "description": _first(tool.description)} for tool in (row.tool for row in TOOLS)],
        "keywords": PROJECT["keywords"],
        "license": PROJECT["license"],
        "compatibility": {
            "platforms": ["darwin", "win32", "linux"],
            "runtimes": {"python": PROJECT["requires-python"]},
        },
        "user_config": {name: _asked(name) for name in ASKED},
    }


def _first(description: str) -> str:
    """The first sentence."""
    return " ".join(description.split()).split(". ")[0].removesuffix(".") + "."


def _asked(name: str) -> dict[str, Any]:
    asked, field = ASKED[name], Settings.model_fields[name]
    return {
        "type": asked.kind,
        "title": asked.title,
        "description": asked.description or field.description,
        "required": False,
        "default": field.default if asked.default is None else asked.default,
    }


def bundle_project() -> str:
    """The project file of the bundle: all that it needs is this package."""
    return (
        "[project]\n"
        f'name = "{NAME}-bundle"\n'
        f'version = "{VERSION}"\n'
        f'requires-python = "{PROJECT["requires-python"]}"\n'
        f'dependencies = ["{NAME}=={VERSION}"]\n'
    )


def plugin() -> dict[str, Any]:
    """The manifest of Claude Code's plugin, with the server that it starts."""
    return {
        "name": SERVER,
        "version": VERSION,
        "description": SUMMARY,
        "author": {"name": AUTHOR, "url": HOME},
        "homepage": HOME,
        "repository": HOME,
        "license": PROJECT["license"],
        "keywords": PROJECT["keywords"],
        "mcpServers": {
            SERVER: {"command": "uvx", "args": ["--torch-backend", "auto", f"{NAME}=={VERSION}"]},
        },
    }


def marketplace() -> dict[str, Any]:
    """This repository as a marketplace of one plugin."""
    return {
        "name": NAME,
        "owner": {"name": AUTHOR, "url": HOME},
        "metadata": {"description": SUMMARY},
        "plugins": [
            {
                "name": SERVER,
                "source": "./packaging/claude-code",
                "description": SUMMARY,
                "version": VERSION,
                "category": "design",
            }
        ],
    }


def main(arguments: Sequence[str]) -> int:
    """Write the files, or with --check say which are not current."""
    stale = [path for path, text in files() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path in stale:
            sys.stderr.write(f"{path.relative_to(ROOT)} is not current: python packaging/manifests.py\n")
        return 1 if stale else 0
    for path, text in files():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
