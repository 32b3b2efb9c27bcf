"""The server serves a client that is not ours: a script on the TypeScript SDK."""

import itertools
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from mcp import StdioServerParameters

SCRIPT = Path(__file__).parent / "typescript"


@pytest.mark.extras
def test_a_typescript_client_makes_a_picture(program: Callable[..., StdioServerParameters], folder: Path):
    work = shutil.copytree(SCRIPT, folder / "client", ignore=shutil.ignore_patterns("node_modules"))
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=work, check=True)
    server = program()
    command = ["npx", "--no-install", "tsx", "client.ts", server.command, *server.args]
    said = subprocess.run(command, cwd=work, env=server.env, stdout=subprocess.PIPE, check=True)
    got = json.loads(said.stdout)
    assert "compose_layers" in got["tools"]
    assert got["kinds"] == ["text", "image", "resource_link"]
    assert all(earlier < later for earlier, later in itertools.pairwise(got["progress"]))
    assert got["progress"]
    image = got["structured"]["images"][0]
    assert Path(image["path"]).stat().st_size == got["bytes"]
