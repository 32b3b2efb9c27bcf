"""The room for picture work: bounded, cancelled at once, and never the end of anybody else."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import numpy as np
import psutil
import pytest
from PIL import Image

from layerdiffuse_mcp.api.layers import Canvas, LayerOptions
from layerdiffuse_mcp.api.outcome import Progress
from layerdiffuse_mcp.backends.pictures import Corner, PictureRoom
from layerdiffuse_mcp.backends.pictures_worker import OVER_LIMIT
from layerdiffuse_mcp.errors import ImageError, OutOfMemory, WorkerDied
from layerdiffuse_mcp.images.tasks import ComposeTask, InspectTask, PlacedFile, SheetTask
from tests.limits import no_descriptors

pytestmark = pytest.mark.anyio

PATIENCE = 60  # seconds, on a machine however busy
LONG = 8000  # pixels a side of a canvas that takes many seconds


@pytest.fixture
def dot(tmp_path: Path) -> Path:
    path = tmp_path / "dot.png"
    Image.fromarray(np.full((8, 8, 4), 200, np.uint8)).save(path)
    return path


def long_task(dot: Path) -> ComposeTask:
    return ComposeTask((PlacedFile(dot, "dot"),), Canvas(size=f"{LONG}x{LONG}"), (1.0, 0.0, 0.0))


def begun() -> tuple[anyio.Event, Callable[[Progress], None]]:
    """An event that is set once a process is at work, and the report that sets it."""
    event = anyio.Event()
    return event, lambda progress: event.set() if progress.message.startswith("putting") else None


async def test_a_task_is_done_in_a_process_that_is_kept_for_the_next(dot: Path):
    async with PictureRoom() as room:
        first = await room.run(InspectTask(dot, preview=True))
        pids = room.pids
        second = await room.run(ComposeTask((PlacedFile(dot, "dot"),), Canvas(pad=1)))
        assert room.pids == pids
    assert (first.width, first.height, first.preview is not None) == (8, 8, True)
    assert (second.width, second.height, second.data[:4]) == (10, 10, b"\x89PNG")
    assert len(pids) == 1


async def test_a_process_that_cannot_be_started_is_an_error_and_the_next_one_can(dot: Path):
    async with PictureRoom() as room:
        with no_descriptors(), pytest.raises(WorkerDied, match=r"could be started.*Too many open files"):
            await room.run(InspectTask(dot))
        assert (await room.run(InspectTask(dot))).width == 8


async def test_who_has_much_to_do_leaves_a_place_to_others(dot: Path):
    async with PictureRoom() as room, anyio.create_task_group() as tasks:
        busy, other = Corner(room), Corner(room)
        event, report = begun()
        for _ in range(3):
            tasks.start_soon(busy.run, long_task(dot), report)
        with anyio.fail_after(PATIENCE):
            await event.wait()
            assert (await other.run(InspectTask(dot))).width == 8
        assert len(room.pids) == 2
        tasks.cancel_scope.cancel()


async def test_the_errors_of_the_work_come_back_and_the_process_stays(tmp_path: Path, dot: Path):
    (tmp_path / "text.png").write_text("no picture")
    async with PictureRoom() as room:
        await room.run(InspectTask(dot))
        pids = room.pids
        with pytest.raises(ImageError, match="it looks like text"):
            await room.run(InspectTask(tmp_path / "text.png"))
        await room.run(InspectTask(dot))
        assert room.pids == pids


async def test_cancelling_a_task_ends_its_process_at_once(dot: Path):
    async with PictureRoom() as room:
        event, report = begun()
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(room.run, long_task(dot), report)
                await event.wait()
                (pid,) = room.pids
                began = time.monotonic()
                group.cancel_scope.cancel()
            assert time.monotonic() - began < 1
        assert not psutil.pid_exists(pid)
        assert room.pids == []
        assert (await room.run(InspectTask(dot))).width == 8


async def test_two_run_side_by_side_and_a_third_waits(dot: Path):
    async with PictureRoom(workers=2) as room:
        first, report_first = begun()
        second, report_second = begun()
        heard: list[str] = []
        done = anyio.Event()

        async def third() -> None:
            await room.run(InspectTask(dot), lambda progress: heard.append(progress.message))
            done.set()

        second_scope = anyio.CancelScope()

        async def run_second() -> None:
            with second_scope:
                await room.run(long_task(dot), report_second)

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(room.run, long_task(dot), report_first)
                group.start_soon(run_second)
                await first.wait()
                await second.wait()
                assert len(room.pids) == 2
                group.start_soon(third)
                await anyio.wait_all_tasks_blocked()
                assert heard == ["waiting for other work on pictures"]
                assert not done.is_set()
                second_scope.cancel()
                await done.wait()
                group.cancel_scope.cancel()
        assert heard[-1] != heard[0]


async def test_progress_rises(dot: Path):
    heard: list[float] = []
    layers = PlacedFile(dot, "a"), PlacedFile(dot, "b", LayerOptions(x=1000))
    task = ComposeTask(layers, Canvas(size="3000x3000"), (0.0, 0.0, 0.0))
    async with PictureRoom() as room:
        await room.run(task, lambda progress: heard.append(progress.fraction))
    assert len(heard) > 4
    assert all(earlier <= later for earlier, later in itertools.pairwise(heard))
    assert 0.3 < heard[-1] <= 1


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, getattr(signal, "SIGRTMIN", 34) + 5])
async def test_a_killed_process_is_an_error_that_says_so_and_the_next_call_works(dot: Path, number: int):
    async with PictureRoom() as room:
        event, report = begun()

        async def kill() -> None:
            await event.wait()
            os.kill(room.pids[0], number)

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(kill)
                with pytest.raises(WorkerDied, match=r"was killed by (SIGKILL|signal \d+).*next call gets a new"):
                    await room.run(long_task(dot), report)
        assert (await room.run(InspectTask(dot))).width == 8


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process is watched, not bounded")
async def test_work_that_needs_more_memory_than_it_may_take_fails_and_the_next_works(dot: Path):
    async with PictureRoom(memory=300_000_000) as room:
        with pytest.raises(OutOfMemory, match=r"more than the 0\.3 GB .* smaller"):
            await room.run(long_task(dot))
        assert (await room.run(InspectTask(dot))).width == 8


def test_where_the_system_sets_no_bound_a_process_ends_when_it_takes_too_much():
    program = """
import threading, time
from layerdiffuse_mcp.backends.pictures_worker import end_beyond
threading.Thread(target=end_beyond, args=(150_000_000,)).start()
held = b"x" * 300_000_000
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, timeout=PATIENCE)
    assert ran.returncode == OVER_LIMIT


async def test_closing_leaves_no_process_and_ends_what_is_at_work(dot: Path):
    room = PictureRoom()
    event, report = begun()
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:

            async def work() -> None:
                with pytest.raises(WorkerDied, match="closing"):
                    await room.run(long_task(dot), report)

            group.start_soon(work)
            await event.wait()
            pids = room.pids
            await room.close()
    assert pids
    assert not any(map(psutil.pid_exists, pids))
    with pytest.raises(WorkerDied, match="closing"):
        await room.run(InspectTask(dot))


async def test_a_process_without_work_ends_by_itself(dot: Path):
    async with PictureRoom(idle=0.2) as room:
        await room.run(InspectTask(dot))
        with anyio.fail_after(PATIENCE):
            while room.pids:
                await anyio.sleep(0.02)
        assert (await room.run(InspectTask(dot))).width == 8


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_no_process_outlives_a_server_that_is_killed_while_it_works(dot: Path):
    program = f"""
import anyio
from pathlib import Path
from layerdiffuse_mcp.api.layers import Canvas
from layerdiffuse_mcp.backends.pictures import PictureRoom
from layerdiffuse_mcp.images.tasks import ComposeTask, PlacedFile

async def main():
    async with PictureRoom() as room:
        def report(progress):
            if progress.message.startswith("putting"):
                print(room.pids[0], flush=True)
        layer = PlacedFile(Path({str(dot)!r}), "dot")
        await room.run(ComposeTask((layer,), Canvas(size="{LONG}x{LONG}"), (1.0, 0.0, 0.0)), report)

anyio.run(main)
"""
    path = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        server.kill()
    deadline = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_a_sheet_shows_pictures_one_after_another(dot: Path):
    async with PictureRoom() as room:
        sheet = await room.run(SheetTask((dot, dot)))
        assert sheet.mime_type == "image/png"
        with pytest.raises(ImageError, match="There is no file"):
            await room.run(SheetTask((dot, dot.with_name("gone.png"))))
