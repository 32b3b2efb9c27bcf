"""What a machine does to the program: its worker is killed, its disk is full, its files run out.

After each: no half file is left, and the next picture is right.
"""

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from mcp import Client
from mcp_types import CallToolResult

from tests.fuzz.examples import check_words
from tests.results import check_files, facts_of, files_below, text_of

Connect = Callable[..., AbstractAsyncContextManager[Client]]

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.own_server(),
    pytest.mark.skipif(sys.platform != "linux", reason="limits and mounts of Linux"),
]

OUTPUT = {"wait_seconds": 600, "preview": False}
SAVING = {**OUTPUT, "save_latent": True}
CALL = {"prompt": "a red apple", "seed": 7, "size": "64x64", "options": {"steps": 3, "fit": "as_is"}, "output": OUTPUT}
PHASES = ("denoising", "decoding", "writing")
LAST = PHASES[-1]
"""The phase that may be over before a client has heard of it."""
PATIENCE = 120.0
"""Seconds that anything may take on the busiest machine."""


def below(process: psutil.Process, name: str) -> list[psutil.Process]:
    """The processes below one whose command holds a word."""
    found: list[psutil.Process] = []
    for child in process.children(recursive=True):
        try:
            if name in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            pass
    return found


def server_of(folder: Path) -> psutil.Process:
    """The youngest server that reads below a folder."""
    servers = [process for process in below(psutil.Process(), "-m") if process.cmdline()[-1] == "layerdiffuse_mcp"]
    own = [process for process in servers if process.environ().get("LAYERDIFFUSE_READ_DIRS") == str(folder)]
    return max(own, key=psutil.Process.create_time)


def workers(server: psutil.Process) -> list[psutil.Process]:
    """The processes that draw."""
    return below(server, "spawn_main")


async def draw(client: Client, **changes: Any) -> CallToolResult:
    with anyio.fail_after(PATIENCE):
        return await client.call_tool("generate_transparent", {**CALL, **changes})


async def draw_until(client: Client, phase: str, then: Callable[[], object], **changes: Any) -> CallToolResult:
    """Draw, and do something when the drawing reaches a phase."""
    reached = False

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        nonlocal reached
        if not reached and (message or "").startswith(phase):
            reached = True
            then()

    with anyio.fail_after(PATIENCE):
        arguments = {**CALL, **changes}
        result = await client.call_tool("generate_transparent", arguments, progress_callback=hear)
    assert reached or phase == LAST
    return result


@pytest.mark.parametrize("phase", PHASES)
async def test_a_worker_killed_in_any_phase_leaves_no_half_file_and_the_next_draws(
    client: Client, folder: Path, phase: str
):
    before, server = files_below(folder / "out"), server_of(folder)
    result = await draw_until(client, phase, lambda: kill(workers(server)), count=2, output=SAVING)
    if result.is_error:
        check_words(text_of(result))
        assert "SIGKILL" in text_of(result)
    if phase == "denoising":
        assert result.is_error
        assert files_below(folder / "out") == before
    facts_of(await draw(client))
    check_files(folder / "out")


async def test_a_worker_killed_while_it_starts_fails_its_job_and_the_next_draws(client: Client, folder: Path):
    server = server_of(folder)
    earlier = workers(server)
    kill(earlier)
    async with anyio.create_task_group() as tasks:
        results: list[CallToolResult] = []

        async def call() -> None:
            results.append(await draw(client))

        tasks.start_soon(call)
        with anyio.fail_after(PATIENCE):
            while not (starting := [worker for worker in workers(server) if worker not in earlier]):
                await anyio.sleep(0.01)
        kill(starting)
    if results[0].is_error:
        check_words(text_of(results[0]))
    facts_of(await draw(client))
    check_files(folder / "out")


def kill(processes: list[psutil.Process]) -> None:
    """End them at once."""
    for process in processes:
        process.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a disk; the test by a quota stands for it")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


async def test_a_disk_that_is_full_or_read_only_is_an_error_that_leaves_no_file_and_the_next_is_written(
    connect: Connect, small_disk: Path, sharing: dict[str, object]
):
    remount(small_disk, "ro")
    async with connect(**sharing, output_dir=small_disk / "out") as client:
        check_refused(await draw(client))
        remount(small_disk, "rw")
        check_refused(await draw(client, count=4, output=SAVING))
        assert files_below(small_disk) == []
        remount(small_disk, "size=8m")
        facts_of(await draw(client, count=2))
    assert len(files_below(small_disk)) == 2
    check_files(small_disk)


def check_refused(result: CallToolResult) -> None:
    assert result.is_error
    check_words(text_of(result))
    assert "cannot be written" in text_of(result)


async def test_a_quota_that_is_used_up_is_an_error_that_leaves_no_file(client: Client, folder: Path):
    facts_of(await draw(client))
    before = files_below(folder / "out")
    processes = [server_of(folder), *workers(server_of(folder))]
    for process in processes:
        process.rlimit(psutil.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    refused = await draw(client, count=2)
    assert refused.is_error
    check_words(text_of(refused))
    assert files_below(folder / "out") == before
    for process in processes:
        process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert len(facts_of(await draw(client, count=2))["images"]) == 2
    check_files(folder / "out")


@pytest.mark.parametrize("warm", [True, False])
async def test_a_server_out_of_file_descriptors_says_so_and_goes_on_once_there_are_some(
    client: Client, folder: Path, warm: bool
):
    image = facts_of(await draw(client))["images"][0]["path"]
    server = server_of(folder)
    if not warm:
        kill(workers(server))
    usual = server.rlimit(psutil.RLIMIT_NOFILE)
    server.rlimit(psutil.RLIMIT_NOFILE, (server.num_fds(), usual[1]))
    calls = {
        "generate_transparent": CALL,
        "inspect_image": {"image": image, "preview": False},
        "compose_layers": {"layers": [{"image": image}]},
        "list_models": {},
        "server_status": {},
        "list_jobs": {},
    }
    try:
        for tool, arguments in calls.items():
            with anyio.fail_after(PATIENCE):
                result = await client.call_tool(tool, arguments)
            if result.is_error:
                check_words(text_of(result))
    finally:
        server.rlimit(psutil.RLIMIT_NOFILE, usual)
    for tool, arguments in calls.items():
        with anyio.fail_after(PATIENCE):
            facts_of(await client.call_tool(tool, arguments))
    check_files(folder / "out")
