"""Workers that several servers share: one process, found or started, that outlives each of them."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import platformdirs
import psutil
import pytest

from layerdiffuse_mcp.api.outcome import Progress
from layerdiffuse_mcp.backends import shared
from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.errors import WorkerDied
from layerdiffuse_mcp.settings import Settings
from tests.backends.test_local import gone, is_alive, obey, pid_of
from tests.jobs.opened import ask, open_jobs
from tests.tasks import drawing

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform == "win32", reason="tried on POSIX alone")]

FOREVER = "steps 1000000"


def workers() -> list[psutil.Process]:
    """Those of this test's state folder."""
    folder = str(platformdirs.user_state_path("layerdiffuse") / "workers")
    return [process for process in psutil.process_iter() if folder in " ".join(command_of(process))]


def command_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A state folder of the test's own, whose workers are gone after it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(shared, "LINGER", 0.5)
    yield
    left = workers()
    for process in left:
        process.kill()
    psutil.wait_procs(left, 30)


@pytest.fixture
def sharing(settings: Settings) -> Settings:
    return settings.model_copy(update={"share_workers": True, "device": "cpu"})


@asynccontextmanager
async def servers(
    settings: Settings, engine: str, count: int = 2, grace: float = 20.0
) -> AsyncIterator[list[LocalBackend]]:
    opened = [LocalBackend(settings, engine, grace) for _ in range(count)]
    try:
        yield opened
    finally:
        for backend in opened:
            await backend.close()


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(60):
        while not holds():
            await anyio.sleep(0.01)


async def test_two_servers_use_one_process_that_is_no_child_of_either(sharing: Settings, rehearsal: str):
    async with servers(sharing, rehearsal) as (one, other):
        pids = [pid_of(await obey(backend, "steps 1")) for backend in (one, other)]
        assert len(set(pids)) == 1 == len(workers())
        assert [backend.state()[0].pid for backend in (one, other)] == pids
        assert [child.pid for child in psutil.Process().children(recursive=True) if child.pid in pids] == []
        assert os.getsid(pids[0]) != os.getsid(0)
    assert await gone(pids[0])
    assert not [path for path in shared.private_folder().iterdir() if path.is_socket()]
