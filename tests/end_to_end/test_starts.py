"""The server starts from whatever clients hand over: nothing filled in, relative paths, no home, a bare script.

Each start costs two seconds of processor time: several oddities share one.
"""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from PIL import Image

from layerdiffuse_mcp.settings import Settings, variable
from tests.conftest import PROGRAMS

pytestmark = pytest.mark.anyio

SERVE = ("-m", "layerdiffuse_mcp")
NOTHING = ("", "  ", "${user_config.value}", "${env:VALUE}", "${VALUE:-}")
"""What clients hand over for a setting that was left out."""


@pytest.fixture
def surroundings(tmp_path: Path) -> dict[str, str]:
    """An environment without a home, in which nothing is written outside the test's folder."""
    kept = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "PATH", "SYSTEMROOT") if name in os.environ}
    folders = {name: str(tmp_path / name) for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME")}
    return {
        **kept,
        **folders,
        "LAYERDIFFUSE_SHARE_WORKERS": "off",
        "PYTHONPATH": os.pathsep.join(filter(None, [*sys.path, str(PROGRAMS)])),
    }


async def facts_of(server: StdioServerParameters, tool: str, arguments: Mapping[str, Any]) -> tuple[str, Any]:
    async with Client(server) as client:
        result = await client.call_tool(tool, dict(arguments))
    assert not result.is_error, result.content
    return result.content[0].text, result.structured_content


async def test_with_nothing_filled_in_it_works_in_the_project_folder(tmp_path: Path, surroundings: dict[str, str]):
    given = {variable(name): NOTHING[i % len(NOTHING)] for i, name in enumerate(Settings.model_fields)}
    project = tmp_path / "project"
    project.mkdir()
    server = StdioServerParameters(command=sys.executable, args=[*SERVE], env=surroundings | given, cwd=project)
    _, status = await facts_of(server, "server_status", {})
    assert status["output_folder"] == str(project / "layerdiffuse")
    assert status["readable_folders"] == [str(project), str(project / "layerdiffuse")]
    assert status["models_folder"] == str(tmp_path / "XDG_DATA_HOME/layerdiffuse/models")


async def test_relative_folders_lie_in_the_working_directory(tmp_path: Path, surroundings: dict[str, str]):
    (tmp_path / "project/pictures").mkdir(parents=True)
    (tmp_path / "shared").mkdir()
    Image.new("RGBA", (8, 8)).save(tmp_path / "shared/nothing.png")
    given = {
        "HOME": "",
        "LAYERDIFFUSE_OUTPUT_DIR": "made/here",
        "LAYERDIFFUSE_READ_DIRS": os.pathsep.join(["pictures", "../shared"]),
        "LAYERDIFFUSE_LOG_FILE": "logs/server.log",
    }
    server = StdioServerParameters(
        command=sys.executable, args=[*SERVE], env=surroundings | given, cwd=tmp_path / "project"
    )
    text, _ = await facts_of(server, "inspect_image", {"image": "../shared/nothing.png"})
    assert "8x8" in text
    assert (tmp_path / "project/logs/server.log").exists()


async def test_it_starts_in_a_folder_that_was_deleted(tmp_path: Path, surroundings: dict[str, str]):
    (tmp_path / "gone").mkdir()
    line = f'cd "{tmp_path}/gone" && rmdir "{tmp_path}/gone" && exec "{sys.executable}" {" ".join(SERVE)}'
    env = surroundings | {"HOME": str(tmp_path)}
    _, status = await facts_of(
        StdioServerParameters(command="/bin/sh", args=["-c", line], env=env), "server_status", {}
    )
    assert Path(status["output_folder"]).is_relative_to(tmp_path)


@pytest.mark.parametrize("name", ["output_dir", "read_dirs", "models_dir"])
@pytest.mark.parametrize("path", [r"C:\Users\me\Pictures", "c:/Pictures", r"\\nas\pictures"])
def test_a_path_of_windows_elsewhere_is_refused_in_words(name: str, path: str):
    """Of all these only one goes through the program: each is refused by the same function."""
    with pytest.raises(ValueError, match="is a path of Windows"):
        Settings(**{name: path})  # pyright: ignore[reportArgumentType]


def test_what_cannot_be_used_ends_the_start_with_a_sentence(tmp_path: Path, surroundings: dict[str, str]):
    env = surroundings | {"LAYERDIFFUSE_OUTPUT_DIR": r"C:\Users\me\Pictures"}
    ran = subprocess.run(
        [sys.executable, *SERVE], env=env, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert re.fullmatch(r"error: A setting cannot be used: output_dir: .* is a path of Windows, .*\n", ran.stderr)


async def test_a_script_without_a_guard_serves_once(tmp_path: Path, surroundings: dict[str, str]):
    script = [str(PROGRAMS / "unguarded.py"), str(tmp_path / "runs")]
    server = StdioServerParameters(command=sys.executable, args=script, env=surroundings, cwd=tmp_path)
    await facts_of(server, "generate_transparent", {"prompt": "draw"})
    assert (tmp_path / "runs").read_text() == "run\n"


async def test_over_http_the_address_is_said_once_it_listens(tmp_path: Path, surroundings: dict[str, str]):
    command = [sys.executable, *SERVE, "--http", "--port", "0"]
    with subprocess.Popen(command, env=surroundings, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            said = re.fullmatch(r"serving on http://127\.0\.0\.1:(\d+)/mcp, until Ctrl-C\n", server.stderr.readline())
            assert said is not None
            socket.create_connection(("127.0.0.1", int(said[1])), timeout=30).close()
        finally:
            server.terminate()
