"""What a machine does to a server: its worker is stopped, its clock goes back. It answers; the next job is right."""

import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import psutil
import pytest
from mcp import Client

from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.server.app import create_server
from layerdiffuse_mcp.settings import Settings
from tests.results import facts_of, text_of

pytestmark = pytest.mark.anyio

PATIENCE = 60.0
"""Seconds that anything may take on the busiest machine."""


@asynccontextmanager
async def serve(settings: Settings, engine: str) -> AsyncIterator[Client]:
    """A server that gives a cancelled job half a second to stop."""
    async with Client(create_server(settings, lambda given: LocalBackend(given, engine, 0.5))) as client:
        yield client


async def running(client: Client, prompt: str, seconds: float = PATIENCE) -> dict[str, Any]:
    """Begin a job, and return its facts once it has taken a step."""
    arguments = {"prompt": prompt, "output": {"wait_seconds": 0, "preview": False}}
    job = facts_of(await client.call_tool("generate_transparent", arguments))
    with anyio.fail_after(seconds):
        while not job.get("progress"):
            await anyio.sleep(0.02)
            told = await client.call_tool("get_job", {"job_ids": [job["job_id"]], "wait_seconds": 0})
            [job] = facts_of(told)["jobs"]
    return job


async def gone(pid: int, seconds: float = 5.0) -> bool:
    """Whether a process ends in time."""
    with anyio.move_on_after(seconds):
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            await anyio.sleep(0.02)
        return True
    return False


async def test_a_stopped_worker_keeps_nobody_waiting_and_is_replaced_by_cancelling(settings: Settings, rehearsal: str):
    async with serve(settings, rehearsal) as client:
        first = await client.call_tool("generate_transparent", {"prompt": "steps 1"})
        worker = int(facts_of(first)["warnings"][0])
        job = await running(client, "steps 1000")
        os.kill(worker, signal.SIGSTOP)
        with anyio.fail_after(PATIENCE):
            for tool in ("server_status", "list_jobs", "list_models"):
                facts_of(await client.call_tool(tool, {}))
            await client.call_tool("cancel_job", {"job_id": job["job_id"]})
            ended = facts_of(await client.call_tool("get_job", {"job_ids": [job["job_id"]]}))["jobs"][0]
            assert ended["status"] in ("cancelling", "cancelled")
            again = facts_of(await client.call_tool("generate_transparent", {"prompt": "steps 1"}))
        assert again["status"] == "done"
        assert again["warnings"] != [str(worker)]
        assert await gone(worker)


@pytest.mark.parametrize("prompt", ["steps 1", "🜚" * 20_000])
async def test_closing_a_server_whose_worker_is_stopped_leaves_no_process(
    settings: Settings, rehearsal: str, prompt: str
):
    async with serve(settings, rehearsal) as client:
        first = await client.call_tool("generate_transparent", {"prompt": "steps 1"})
        worker = int(facts_of(first)["warnings"][0])
        os.kill(worker, signal.SIGSTOP)
        for _ in range(20):
            await client.call_tool("generate_transparent", {"prompt": prompt, "output": {"wait_seconds": 0}})
    assert await gone(worker)


async def test_a_clock_that_goes_back_gives_no_negative_times(
    settings: Settings, rehearsal: str, monkeypatch: pytest.MonkeyPatch
):
    real: Callable[[], float] = time.time
    async with serve(settings, rehearsal) as client:
        job = await running(client, "steps 200")
        waiting = facts_of(
            await client.call_tool("generate_transparent", {"prompt": "steps 1", "output": {"wait_seconds": 0}})
        )
        monkeypatch.setattr(time, "time", lambda: real() - 3600)
        for one in (job, waiting):
            told = await client.call_tool("get_job", {"job_ids": [one["job_id"]], "wait_seconds": 0})
            assert not negative(text_of(told)), text_of(told)
        listed = await client.call_tool("list_jobs", {})
        assert not negative(text_of(listed)), text_of(listed)
        await client.call_tool("cancel_job", {"job_id": job["job_id"]})
        with anyio.fail_after(PATIENCE):
            done = await client.call_tool("get_job", {"job_ids": [waiting["job_id"]]})
        assert facts_of(done)["jobs"][0]["status"] == "done"
        assert not negative(text_of(done)), text_of(done)


def negative(text: str) -> bool:
    """Whether it tells a number below zero."""
    return re.search(r"(?<!\w)-\d", text) is not None
