"""What registries and clients read of the package is what the package is."""

import json
import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft7Validator
from PIL import Image

import layerdiffuse_mcp
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.server.tools import TOOLS
from layerdiffuse_mcp.settings import Settings, variable

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]
README = (ROOT / "README.md").read_text()
TEXTS = sorted(path.relative_to(ROOT).as_posix() for path in (PACKAGING / "claude-code").glob("*/**/*.md"))


def read(path: str) -> dict[str, Any]:
    return json.loads((ROOT / path).read_text())


def variables() -> list[dict[str, Any]]:
    """The environment variables of the registry's entry."""
    return read("server.json")["packages"][0]["environmentVariables"]


def test_every_file_is_what_the_script_writes(capsys: pytest.CaptureFixture[str]):
    script = runpy.run_path(str(PACKAGING / "manifests.py"))
    assert script["main"](["--check"]) == 0, capsys.readouterr().err


def test_the_registry_takes_the_entry():
    schema = read("tests/packaging/schemas/server.schema.json")
    entry = read("server.json")
    assert entry["$schema"] == schema["$id"]
    Draft7Validator(schema).validate(entry)


def test_the_readme_says_whose_the_entry_is():
    """The registry looks for this text in what the index shows."""
    assert f"mcp-name: {read('server.json')['name']}" in README


def test_the_registry_names_every_setting_with_its_default(monkeypatch: pytest.MonkeyPatch):
    assert [entry["name"] for entry in variables()] == [variable(name) for name in Settings.model_fields]
    for name in Settings.model_fields:
        monkeypatch.delenv(variable(name), raising=False)
    plain = Settings()
    for entry in variables():
        if "default" in entry:
            monkeypatch.setenv(entry["name"], entry["default"])
    assert Settings() == plain


def test_a_default_of_the_registry_is_one_of_its_choices():
    chosen = [entry for entry in variables() if "choices" in entry]
    assert chosen
    assert all(entry["default"] in entry["choices"] for entry in chosen)


def test_the_bundle_hands_over_settings_that_exist_and_have_a_default():
    manifest = read("packaging/mcpb/manifest.json")
    for name, value in manifest["server"]["mcp_config"]["env"].items():
        asked = re.fullmatch(r"\$\{user_config\.(\w+)\}", value)
        assert asked
        assert name == variable(asked[1])
        default = manifest["user_config"][asked[1]]["default"]
        assert "${" not in str(default)
        Settings(**{asked[1]: default})


def test_the_bundle_lists_every_tool():
    assert [tool["name"] for tool in read("packaging/mcpb/manifest.json")["tools"]] == [row.name for row in TOOLS]


def test_the_icon_is_a_square_with_transparent_corners():
    icon = np.asarray(Image.open(PACKAGING / "mcpb/icon.png"))
    assert icon.shape == (512, 512, 4)
    assert icon[0, 0, 3] == 0
    assert icon[256, 256, 3] == 255


def test_all_versions_agree():
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    changed = re.search(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert citation
    assert changed
    said = {
        "server.json": read("server.json")["version"],
        "its package": read("server.json")["packages"][0]["version"],
        "bundle": read("packaging/mcpb/manifest.json")["version"],
        "plugin": read("packaging/claude-code/.claude-plugin/plugin.json")["version"],
        "marketplace": read(".claude-plugin/marketplace.json")["plugins"][0]["version"],
        "CITATION.cff": citation[1],
        "CHANGELOG.md": changed[1],
        "the installed package (install it again)": layerdiffuse_mcp.__version__,
    }
    assert said == dict.fromkeys(said, VERSION)


@pytest.mark.parametrize("text", TEXTS)
def test_the_plugin_names_tools_that_exist(text: str):
    said = set(re.findall(r"`([a-z]+_[a-z_]+)", (ROOT / text).read_text()))
    tools = {row.name for row in TOOLS}
    others = {task.value for task in Task} | {name for row in TOOLS for name in row.tool.parameters["properties"]}
    assert said & tools
    assert said - tools - others <= {"job_id"}


def test_the_plugin_has_commands_and_a_skill():
    assert {Path(text).parts[2] for text in TEXTS} == {"commands", "skills"}
