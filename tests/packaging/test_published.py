"""What is published works: the index takes it, and clients draw from the wheel, through the bundle too.

No second torch is installed: the wheel lies in an environment over the one that runs the tests.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from email import message_from_bytes
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters

from tests.packaging.test_manifests import PACKAGING, ROOT, VERSION

pytestmark = [pytest.mark.extras, pytest.mark.anyio]

NODE = Path(__file__).parent / "node"
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
"""Where programs are looked for: those beside this Python first."""
BIN = "Scripts" if os.name == "nt" else "bin"
PICTURE = {"prompt": "a red apple", "seed": 7, "options": {"steps": 2}, "output": {"wait_seconds": 600}}


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """What a command prints; one that fails fails the test, with what it said."""
    line = [shutil.which(command[0], path=PATH) or command[0], *command[1:]]
    env = os.environ | {"PATH": PATH} | environment
    ran = subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return next(built.glob(f"layerdiffuse_mcp-{VERSION}-*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, whose dependencies are those of the tests'."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    run("uv", "venv", "--quiet", "--python", sys.executable, folder)
    python = folder / BIN / "python"
    run("uv", "pip", "install", "--quiet", "--python", python, "--no-deps", wheel)
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (own / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n")
    loaded = run(python, "-c", "import layerdiffuse_mcp; print(layerdiffuse_mcp.__file__)", cwd=folder)
    assert own in Path(loaded.strip()).parents
    return folder


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the clients' own programs are installed."""
    folder = tmp_path_factory.mktemp("node") / "work"
    shutil.copytree(NODE, folder, ignore=shutil.ignore_patterns("node_modules"))
    run("npm", "install", "--no-audit", "--no-fund", "--silent", cwd=folder)
    return folder


async def draw(command: str, arguments: Sequence[str], variables: dict[str, str], cwd: Path) -> Path:
    """Draw through a client; returns the picture."""
    kept = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "XDG_CACHE_HOME", "XDG_STATE_HOME")}
    kept["LAYERDIFFUSE_SHARE_WORKERS"] = "off"  # no worker outlasts the environment
    server = StdioServerParameters(
        command=shutil.which(command, path=PATH) or command,
        args=[*arguments],
        env={"PATH": PATH, "HOME": str(cwd)} | kept | variables,
        cwd=cwd,
    )
    async with Client(server) as client:
        assert client.server_info.version == VERSION
        result = await client.call_tool("generate_transparent", PICTURE)
    assert not result.is_error, result.content
    assert result.structured_content
    return Path(result.structured_content["images"][0]["path"])


def test_the_index_takes_what_is_built(built: Path):
    run(sys.executable, "-m", "twine", "check", "--strict", *built.iterdir())


def test_the_wheel_and_the_sdist_hold_the_whole_package(built: Path, wheel: Path):
    ours = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "layerdiffuse_mcp").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"layerdiffuse_mcp/py.typed", "layerdiffuse_mcp/pocket/pocket.safetensors"} <= ours
    assert ours <= {*zipfile.ZipFile(wheel).namelist()}
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        assert ours <= {name.partition("/")[2] for name in sdist.getnames()}


def test_the_page_at_the_index_addresses_everything_in_full(wheel: Path):
    data = zipfile.ZipFile(wheel).read(f"layerdiffuse_mcp-{VERSION}.dist-info/METADATA")
    page = str(message_from_bytes(data).get_payload())
    links = re.findall(r"\]\(([^)]+)\)|(?:src|href|srcset)=\"([^\"]+)\"", page)
    assert links
    assert [link for link in map("".join, links) if not link.startswith(("https://", "#"))] == []
    assert f"/v{VERSION}/docs/" in page
    assert "mcp-name: io.github.layerdiffuse-mcp/layerdiffuse-mcp" in page


async def test_a_client_draws_from_the_wheel(environment: Path, tmp_path: Path):
    picture = await draw(str(environment / BIN / "layerdiffuse-mcp"), [], {}, tmp_path)
    assert picture.is_relative_to(tmp_path)


async def test_a_client_draws_through_the_bundle(environment: Path, packages: Path, tmp_path: Path):
    """As Claude Desktop starts it, except that the environment is there already."""
    mcpb = packages / "node_modules/.bin/mcpb"
    bundle, folder = tmp_path / "layerdiffuse.mcpb", tmp_path / "unpacked"
    run(mcpb, "validate", PACKAGING / "mcpb/manifest.json")
    run(mcpb, "pack", PACKAGING / "mcpb", bundle)
    run(mcpb, "unpack", bundle, folder)
    chosen = json.dumps({"output_dir": str(tmp_path / "pictures"), "device": "cpu"})
    config = json.loads(run("node", "start.mjs", folder, chosen, cwd=packages))
    assert "${" not in json.dumps(config)
    there = {"UV_PROJECT_ENVIRONMENT": str(environment), "UV_NO_SYNC": "1"}
    picture = await draw(config["command"], config["args"], config["env"] | there, tmp_path)
    assert picture.is_relative_to(tmp_path / "pictures")


@pytest.mark.parametrize("folder", [".", "packaging/claude-code"])
def test_claude_code_takes_the_plugin_and_its_marketplace(packages: Path, tmp_path: Path, folder: str):
    run(packages / "node_modules/.bin/claude", "plugin", "validate", "--strict", ROOT / folder, HOME=str(tmp_path))


def test_the_workflows_have_no_mistake():
    run("actionlint", *(ROOT / ".github/workflows").glob("*.yml"))
