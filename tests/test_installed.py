"""The commands that messages name are those by which the program was installed."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from layerdiffuse_mcp import installed
from layerdiffuse_mcp.errors import ModelNotFound
from layerdiffuse_mcp.families.matting import MATTING
from layerdiffuse_mcp.families.registry import FAMILIES

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LACKED = ("transformers", "onnx", "onnxruntime", "ray")


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no extra were here."""
    found = installed.find_spec
    monkeypatch.setattr(installed, "find_spec", lambda name: None if name in LACKED else found(name))


@pytest.mark.parametrize(
    ("folder", "mark", "starts", "brings"),
    [
        ("venv", "", "layerdiffuse-mcp", "pip install 'layerdiffuse-mcp[cutout]'"),
        (
            "uv/archive-v0/x1",
            "",
            "uvx --torch-backend auto layerdiffuse-mcp",
            "uvx --torch-backend auto --from 'layerdiffuse-mcp[cutout]' layerdiffuse-mcp --version",
        ),
        (
            "uv/tools/layerdiffuse-mcp",
            "uv-receipt.toml",
            "layerdiffuse-mcp",
            "uv tool install --torch-backend auto 'layerdiffuse-mcp[cutout]'",
        ),
        (
            "pipx/venvs/layerdiffuse-mcp",
            "pipx_metadata.json",
            "layerdiffuse-mcp",
            "pipx inject layerdiffuse-mcp 'layerdiffuse-mcp[cutout]'",
        ),
    ],
)
def test_commands_are_those_of_what_installed_the_package(
    folder: str, mark: str, starts: str, brings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    prefix = tmp_path / folder
    prefix.mkdir(parents=True)
    if mark:
        (prefix / mark).touch()
    monkeypatch.setattr(sys, "prefix", str(prefix))
    assert installed.program() == starts
    assert installed.install("cutout") == brings
    with pytest.raises(ModelNotFound, match=re.escape("onnx and onnxruntime, which this installation lacks: ")) as said:
        installed.check("cutout", "A photograph")
    assert f"`{brings.removesuffix(' --version')}`" in str(said.value)


def test_under_uvx_what_is_here_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "archive-v0" / "x1"))
    monkeypatch.setattr(installed, "find_spec", lambda name: None if "onnx" in name or name == "ray" else object())
    assert installed.program() == "uvx --torch-backend auto --from 'layerdiffuse-mcp[layered]' layerdiffuse-mcp"
    assert "'layerdiffuse-mcp[cutout,layered]'" in installed.install("cutout")


def test_each_extra_brings_what_is_looked_for():
    for extra, packages in installed.EXTRAS.items():
        brought = {re.match(r"[\w-]+", line)[0] for line in PROJECT["optional-dependencies"][extra]}
        assert brought == {*packages}
    asked = {card.extra for card in FAMILIES.values()} | {network.extra for network in MATTING.values()}
    assert asked - {""} <= installed.EXTRAS.keys()
