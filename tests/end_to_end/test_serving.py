"""A server for several over HTTP, as a process: it drains at SIGTERM, and the next one goes on where it was."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from PIL import Image

from layerdiffuse_mcp.server.tokens import hash_of, new_token
from tests.conftest import PROGRAMS
from tests.results import facts_of, text_of
from tests.server.served import connected

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")]

TOKEN = new_token()
ERAS = ["2026-07-28", "legacy"]


@contextmanager
def serving(folder: Path, drain_seconds: float) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server process, and the address of MCP there."""
    file = folder / "tokens.toml"
    file.write_text(f'[anna]\nsha256 = "{hash_of(TOKEN)}"\n')
    file.chmod(0o600)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = {"output_dir": folder / "out", "models_dir": folder, "tokens_file": file, "group_jobs": "off"}
    environment = {f"LAYERDIFFUSE_{name.upper()}": str(value) for name, value in given.items()}
    environment |= {"LAYERDIFFUSE_DRAIN_SECONDS": str(drain_seconds), "XDG_STATE_HOME": str(folder / "state")}
    environment["PYTHONPATH"] = os.pathsep.join([str(PROGRAMS), *filter(None, sys.path)])
    command = [sys.executable, str(PROGRAMS / "rehearsed.py"), str(port)]
    with subprocess.Popen(command, env=os.environ | environment) as process:
        try:
            yield process, f"http://127.0.0.1:{port}/mcp"
        finally:
            process.kill()


async def ready(url: str) -> tuple[int, dict[str, Any]]:
    """What /ready says, as soon as the server answers at all."""
    async with httpx2.AsyncClient(timeout=30, verify=False) as web:
        with anyio.fail_after(60):
            while True:
                with suppress(httpx2.ConnectError):
                    answer = await web.get(url.replace("/mcp", "/ready"))
                    return answer.status_code, answer.json()
                await anyio.sleep(0.05)


async def drawn(client: Client, prompt: str, wait: float) -> dict[str, Any]:
    asked = {"prompt": prompt, "output": {"wait_seconds": wait, "preview": False}}
    return facts_of(await client.call_tool("generate_transparent", asked))


async def begun(client: Client, job: str) -> None:
    with anyio.fail_after(60):
        while True:
            found = facts_of(await client.call_tool("get_job", {"job_ids": [job], "wait_seconds": 0}))["jobs"][0]
            if found["status"] == "running" and found["progress"] > 0:
                return
            await anyio.sleep(0.05)


@pytest.mark.parametrize("mode", ERAS)
async def test_a_server_that_is_told_to_end_finishes_what_runs_and_keeps_what_waits(mode: str, tmp_path: Path):
    results: dict[str, dict[str, Any]] = {}
    with serving(tmp_path, 60) as (process, url):
        assert await ready(url) == (200, {"ready": True})
        async with connected(url, mode, TOKEN) as client:

            async def waits(name: str, prompt: str) -> None:
                results[name] = await drawn(client, prompt, 100)

            async def follows(name: str, job: str) -> None:
                asked = {"job_ids": [job], "wait_seconds": 100}
                results[name] = facts_of(await client.call_tool("get_job", asked))["jobs"][0]

            picture = Path(facts_of(await client.call_tool("server_status", {}))["output_folder"], "given.png")
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGBA", (64, 64), (255, 0, 0, 128)).save(picture)
            async with anyio.create_task_group() as tasks:
                running = (await drawn(client, "steps 60", 0))["job_id"]
                await begun(client, running)
                tasks.start_soon(follows, "running", running)
                tasks.start_soon(waits, "waiting", "draw")
                while not facts_of(await client.call_tool("list_jobs", {"status": "queued"})).get("total"):
                    await anyio.sleep(0.02)
                edit = {"prompt": "draw", "image": str(picture), "output": {"wait_seconds": 0}}
                edited = facts_of(await client.call_tool("edit_transparent", edit))["job_id"]
                picture.unlink()
                process.send_signal(signal.SIGTERM)
                with anyio.fail_after(30):
                    while (await ready(url)) != (503, {"ready": False, "reason": "draining"}):
                        await anyio.sleep(0.02)
                refused = await client.call_tool("generate_transparent", {"prompt": "draw"})
                assert "takes no new jobs" in text_of(refused)
        assert results["running"]["status"] == "done"
        assert results["waiting"]["status"] == "queued"
        assert "the next one does this job" in results["waiting"]["message"]
        assert process.wait(30) == -signal.SIGTERM
    with serving(tmp_path, 600) as (process, url):  # the next one, which a second signal ends at once
        await ready(url)
        async with connected(url, mode, TOKEN) as client:
            jobs = [results["waiting"]["job_id"], edited, running]
            again = facts_of(await client.call_tool("get_job", {"job_ids": jobs}))
            await begun(client, (await drawn(client, "steps 1000000", 0))["job_id"])
            process.send_signal(signal.SIGTERM)
            while (await ready(url))[0] != 503:
                await anyio.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 128 + signal.SIGTERM
    assert [job["status"] for job in again["jobs"]] == ["done", "done", "done"]
