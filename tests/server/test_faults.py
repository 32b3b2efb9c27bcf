"""What a machine does to a server: its worker is stopped, its clock goes back. It answers; the next job is right."""

import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from huggingface_hub import constants
from mcp import Client
from PIL import Image

from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.server import contents
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


OUT_OF_REACH = "a" * 300
"""The name of a folder that no system has: whoever looks there has an error and not an empty folder."""
ALIVE = {"server_status": {}, "list_models": {}, "list_jobs": {}, "find_images": {}}
DRAWN = {"prompt": "draw", "output": {"preview": False}}


@pytest.mark.parametrize("folder", ["output_dir", "models_dir", "XDG_STATE_HOME", "HF_HUB_CACHE", "TMPDIR"])
async def test_a_folder_out_of_reach_ends_no_server_and_is_named_by_what_needs_it(
    folder: str, settings: Settings, rehearsal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    away = tmp_path / OUT_OF_REACH
    given = tmp_path / "given.png"
    Image.new("RGBA", (8, 8)).save(given)
    if folder in Settings.model_fields:
        settings = settings.model_copy(update={folder: away})
    elif folder == "HF_HUB_CACHE":
        monkeypatch.setattr(constants, folder, str(away))
    elif folder == "TMPDIR":
        monkeypatch.setattr(tempfile, "tempdir", str(away))
    else:
        monkeypatch.setenv(folder, str(away))
    async with serve(settings, rehearsal) as client:
        said = {name: text_of(await client.call_tool(name, asked)) for name, asked in ALIVE.items()}
        said["generate_transparent"] = text_of(await client.call_tool("generate_transparent", DRAWN))
        edit = {**DRAWN, "image": str(given)}
        said["edit_transparent"] = text_of(await client.call_tool("edit_transparent", edit))
    assert not [text for text in said.values() if "unexpectedly" in text or "Error executing" in text]
    named = {name for name, text in said.items() if "File name too long" in text}
    assert named == {
        "output_dir": {"generate_transparent", "edit_transparent"},
        "models_dir": {"list_models"},
        "XDG_STATE_HOME": {"find_images"},
        "TMPDIR": {"edit_transparent"},
    }.get(folder, set())


async def test_what_is_kept_of_given_pictures_has_a_new_folder_where_the_old_one_was_removed(
    settings: Settings, rehearsal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    Image.new("RGBA", (8, 8)).save(tmp_path / "given.png")
    edit = {**DRAWN, "image": str(tmp_path / "given.png")}
    async with serve(settings, rehearsal) as client:
        for _ in range(2):
            assert not (await client.call_tool("edit_transparent", edit)).is_error
            [kept] = (tmp_path / "temporary").glob(contents.PREFIX + "*")
            shutil.rmtree(kept)


async def test_a_working_directory_that_is_removed_changes_nothing(
    rehearsal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    settings = Settings(models_dir=tmp_path / "models", warm_up=False)
    shutil.rmtree(project)
    async with serve(settings, rehearsal) as client:
        drawn = facts_of(await client.call_tool("generate_transparent", DRAWN))
        status = facts_of(await client.call_tool("server_status", {}))
    assert drawn["status"] == "done"
    assert status["output_folder"] == str(project / "layerdiffuse")
    assert status["readable_folders"] == [str(project), str(project / "layerdiffuse")]


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
