"""Two workers behind one server, drawing with the embedded model."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from mcp import Client
from mcp_types import CallToolResult
from PIL import Image

from tests.results import facts_of, text_of

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.own_server(workers=2, device="cpu"),
    pytest.mark.usefixtures("two_threads"),
    pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals"),
]

OUTPUT = {"wait_seconds": 600, "preview": False}
SMALL = {"steps": 2, "fit": "as_is"}
APPLE = {"prompt": "a red apple", "seed": 7, "size": "64x64", "options": SMALL, "output": OUTPUT}
LONG = {**APPLE, "options": {**SMALL, "steps": 100}, "output": {**OUTPUT, "wait_seconds": 0}}


async def workers_of(client: Client) -> list[dict[str, Any]]:
    return facts_of(await client.call_tool("server_status", {}))["workers"]


async def test_two_workers_draw_at_once_and_the_same_picture(client: Client):
    results: list[CallToolResult] = []

    async def draw() -> None:
        results.append(await client.call_tool("generate_transparent", APPLE))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(draw)
        tasks.start_soon(draw)
    paths = [Path(facts_of(result)["images"][0]["path"]) for result in results]
    one, other = (Image.open(path) for path in paths)
    with one, other:
        assert one.tobytes() == other.tobytes()
    loaded = [[model["model"] for model in worker["engine"]["loaded"]] for worker in await workers_of(client)]
    assert loaded == [["pocket"], ["pocket"]]
    layers = [worker["engine"]["loaded"][0]["layers"] for worker in await workers_of(client)]
    assert all("layer_sd15_transparent_attn.safetensors" in names for names in layers)


async def test_a_worker_that_is_killed_costs_its_own_picture_alone(client: Client):
    begun = [facts_of(await client.call_tool("generate_transparent", LONG)) for _ in range(2)]
    with anyio.fail_after(120):
        while [worker["phase"] for worker in await workers_of(client)] != ["busy", "busy"]:
            await anyio.sleep(0.05)
    victim = await pid_of_a_worker(client)
    os.kill(victim, signal.SIGKILL)
    with anyio.fail_after(300):
        ended = await client.call_tool(
            "get_job", {"job_ids": [job["job_id"] for job in begun], "wait_seconds": 600, "preview": False}
        )
    jobs = facts_of(ended)["jobs"]
    assert sorted(job["status"] for job in jobs) == ["done", "failed"]
    assert "SIGKILL" in text_of(ended)
    assert facts_of(await client.call_tool("generate_transparent", APPLE))["status"] == "done"


async def pid_of_a_worker(client: Client) -> int:
    workers = [
        process.pid
        for process in psutil.Process().children(recursive=True)
        if any("spawn_main" in word for word in process.cmdline())
    ]
    assert len(workers) == 2
    return workers[0]
