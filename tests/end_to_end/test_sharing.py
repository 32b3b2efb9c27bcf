"""Two clients, each with a server of its own on stdio, and one worker between them."""

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from mcp import Client, StdioServerParameters
from PIL import Image

from tests.results import facts_of

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform == "win32", reason="tried on POSIX alone")]

OUTPUT = {"wait_seconds": 600, "preview": False}
APPLE = {"prompt": "a red apple", "seed": 7, "size": "64x64", "options": {"steps": 2, "fit": "as_is"}, "output": OUTPUT}
LONG = {**APPLE, "options": {"steps": 150, "fit": "as_is"}, "output": {**OUTPUT, "wait_seconds": 0}}

Open = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture(scope="module")
async def state_folder(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    """Where this module's servers meet; their workers are gone after it."""
    folder = tmp_path_factory.mktemp("state")
    yield folder
    for process in workers(folder):
        process.kill()


@pytest.fixture(scope="module")
def open_client(program: Callable[..., StdioServerParameters], state_folder: Path) -> Open:
    @asynccontextmanager
    async def opened(**settings: object) -> AsyncIterator[Client]:
        server = program(**{"share_workers": "auto", "device": "cpu", **settings})
        server.env = {**(server.env or {}), "XDG_STATE_HOME": str(state_folder)}
        async with Client(server) as client:
            yield client

    return opened


def workers(folder: Path) -> list[psutil.Process]:
    return [one for one in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(one.info["cmdline"] or ())]


def servers() -> list[psutil.Process]:
    """In the order in which they were started."""
    found = [child for child in psutil.Process().children() if "layerdiffuse_mcp" in child.cmdline()]
    return sorted(found, key=psutil.Process.create_time)


async def draw(client: Client, arguments: dict[str, Any] = APPLE) -> dict[str, Any]:
    with anyio.fail_after(300):
        return facts_of(await client.call_tool("generate_transparent", arguments))


async def status(client: Client) -> dict[str, Any]:
    return facts_of(await client.call_tool("server_status", {}))


async def test_two_clients_share_a_model_and_the_death_of_the_first_server_costs_its_own_job_alone(
    open_client: Open, state_folder: Path, folder: Path
):
    async with open_client(output_dir=folder / "second") as second:
        async with open_client(output_dir=folder / "first") as first:
            pictures = [(await draw(client))["images"][0]["path"] for client in (first, second)]
            assert [Path(path).parent.parent.name for path in pictures] == ["first", "second"]
            with Image.open(pictures[0]) as one, Image.open(pictures[1]) as other:
                assert one.tobytes() == other.tobytes()
            [worker] = workers(state_folder)
            loaded = [(await status(client))["engine"]["loaded"] for client in (first, second)]
            assert [model["model"] for model in loaded[0]] == ["pocket"]
            assert loaded[0] == loaded[1]

            killed = await draw(first, LONG)
            listed = facts_of(await second.call_tool("list_jobs", {}))["jobs"]
            assert killed["job_id"] not in [job["job_id"] for job in listed]
            with anyio.fail_after(60):
                while (await status(second))["worker"] != "busy":
                    await anyio.sleep(0.02)
            waiting = await draw(second, {**APPLE, "output": {**OUTPUT, "wait_seconds": 0}})
            assert waiting["status"] == "running"
            servers()[1].kill()
            ended = facts_of(await second.call_tool("get_job", {"job_ids": [waiting["job_id"]], "wait_seconds": 300}))
            assert ended["jobs"][0]["status"] == "done"
        assert [process.pid for process in workers(state_folder)] == [worker.pid]
        assert [model["model"] for model in (await status(second))["engine"]["loaded"]] == ["pocket"]
        assert not list((folder / "first").rglob(f"*{killed['job_id']}*"))
