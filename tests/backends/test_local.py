"""The local backend: one worker process that dies alone and is replaced."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import psutil
import pytest

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.plan import GroupPlan
from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.errors import LayerDiffuseError, OutOfMemory, WorkerDied
from layerdiffuse_mcp.settings import Settings
from tests.limits import no_descriptors
from tests.tasks import drawing

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def open_backend(settings: Settings, engine: str, cancel_grace: float = 20.0) -> AsyncIterator[LocalBackend]:
    backend = LocalBackend(settings, engine, cancel_grace)
    try:
        yield backend
    finally:
        await backend.close()


async def obey(backend: LocalBackend, prompt: str, seen: list[Progress] | None = None) -> Outcome:
    return await backend.run(drawing(prompt), {}, (seen if seen is not None else []).append)


def pid_of(outcome: Outcome) -> int:
    return int(outcome.warnings[0])


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc").exists() else True


async def gone(pid: int, seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < deadline:
        await anyio.sleep(0.05)
    return not is_alive(pid)


async def test_requests_run_in_one_other_process_that_is_kept(settings: Settings, rehearsal: str):
    async with open_backend(settings, rehearsal) as backend:
        first, second = await obey(backend, "steps 1"), await obey(backend, "steps 1")
    assert pid_of(first) == pid_of(second) != os.getpid()


async def test_every_step_is_reported(settings: Settings, rehearsal: str):
    seen: list[Progress] = []
    async with open_backend(settings, rehearsal) as backend:
        await obey(backend, "steps 4", seen)
    assert [step.fraction for step in seen] == [0.25, 0.5, 0.75, 1.0]
    assert seen[0].message == "step 1/4"


async def test_an_error_of_the_engine_arrives_as_what_it_was(settings: Settings, rehearsal: str):
    async with open_backend(settings, rehearsal) as backend:
        with pytest.raises(OutOfMemory, match="Too large"):
            await obey(backend, "refused")


async def test_a_bug_fails_its_request_and_leaves_the_worker(settings: Settings, rehearsal: str):
    async with open_backend(settings, rehearsal) as backend:
        before = await obey(backend, "steps 1")
        with pytest.raises(LayerDiffuseError, match="ZeroDivisionError: a bug"):
            await obey(backend, "broken")
        assert pid_of(await obey(backend, "steps 1")) == pid_of(before)


async def test_a_killed_worker_fails_its_request_and_the_next_gets_another(settings: Settings, rehearsal: str):
    async with open_backend(settings, rehearsal) as backend:
        before = await obey(backend, "steps 1")
        with pytest.raises(WorkerDied, match="SIGKILL"):
            await obey(backend, "killed")
        assert pid_of(await obey(backend, "steps 1")) != pid_of(before)


async def test_a_worker_killed_while_idle_costs_no_request(settings: Settings, rehearsal: str):
    async with open_backend(settings, rehearsal) as backend:
        victim = pid_of(await obey(backend, "steps 1"))
        os.kill(victim, signal.SIGKILL)
        assert pid_of(await obey(backend, "steps 1")) != victim


async def test_a_worker_that_ends_after_its_answer_is_replaced(settings: Settings, rehearsal: str):
    async with open_backend(settings, rehearsal) as backend:
        before = pid_of(await obey(backend, "steps 1"))
        with pytest.raises(OutOfMemory, match="no longer fit"):
            await obey(backend, "unfit")
        # handed over at once, and again after the worker's end: whichever worker has not begun it
        assert await gone(before)
        assert pid_of(await obey(backend, "steps 1")) != before


async def test_a_worker_that_lost_its_device_says_why_and_is_replaced(settings: Settings, rehearsal: str):
    async with open_backend(settings, rehearsal) as backend:
        before = pid_of(await obey(backend, "steps 1"))
        with pytest.raises(LayerDiffuseError, match="unspecified launch failure"):
            await obey(backend, "lost")
        assert pid_of(await obey(backend, "steps 1")) != before


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="no real-time signals here")
async def test_a_worker_ended_by_a_real_time_signal_is_told_of_by_its_name(settings: Settings, rehearsal: str):
    async with open_backend(settings, rehearsal) as backend:
        with pytest.raises(WorkerDied, match=r"by signal SIGRTMIN\+2 "):
            await obey(backend, f"signal {signal.SIGRTMIN + 2}")


async def test_nothing_is_left_of_an_idle_worker_that_dies(settings: Settings, rehearsal: str):
    async with open_backend(settings, rehearsal) as backend:
        victim = pid_of(await obey(backend, "steps 1"))
        os.kill(victim, signal.SIGKILL)
        with anyio.fail_after(60):
            while psutil.pid_exists(victim) or backend.state()[0].phase != "stopped":  # a zombie exists too
                await anyio.sleep(0.01)


async def test_the_event_loop_goes_on_while_a_stopped_worker_takes_nothing(settings: Settings, rehearsal: str):
    async with open_backend(settings, rehearsal, cancel_grace=0.1) as backend:
        victim = pid_of(await obey(backend, "steps 1"))
        os.kill(victim, signal.SIGSTOP)
        longest = 0.0
        with anyio.move_on_after(1):
            async with anyio.create_task_group() as tasks:
                # many long prompts: more than a pipe holds
                request = GroupPlan(plans=(drawing("long " + "x" * 19_000),) * 40)
                tasks.start_soon(backend.run, request, {}, lambda _: None)
                while True:
                    before = time.monotonic()
                    await anyio.sleep(0.01)
                    backend.state()
                    longest = max(longest, time.monotonic() - before)
        assert longest < 0.5
        assert await gone(victim)


async def test_closing_leaves_no_process_and_no_thread(settings: Settings, rehearsal: str):
    before = set(threading.enumerate())
    async with open_backend(settings, rehearsal) as backend:
        pid = pid_of(await obey(backend, "steps 1"))
        os.kill(pid, signal.SIGSTOP)  # it can hear nothing any more
        assert any("worker" in thread.name for thread in threading.enumerate())
    assert not psutil.pid_exists(pid)
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.endswith(" to worker")]


async def test_a_worker_that_cannot_be_started_is_an_error_and_the_next_one_can(settings: Settings, rehearsal: str):
    async with open_backend(settings, rehearsal) as backend:
        with no_descriptors():
            with pytest.raises(WorkerDied, match=r"could not be started.*Too many open files"):
                await backend.warm_up()
            with pytest.raises(WorkerDied, match="could not be started"):
                await obey(backend, "steps 1")
        assert pid_of(await obey(backend, "steps 1"))


async def test_cancelling_stops_at_a_step_and_keeps_the_worker(settings: Settings, rehearsal: str):
    async with open_backend(settings, rehearsal) as backend:
        pid = pid_of(await obey(backend, "steps 1"))
        seen: list[Progress] = []
        with anyio.fail_after(60), anyio.CancelScope() as scope:

            def see(progress: Progress) -> None:
                seen.append(progress)
                scope.cancel()

            await backend.run(drawing("steps 100000"), {}, see)
        assert scope.cancelled_caught
        assert pid_of(await obey(backend, "steps 1")) == pid
        assert 0 < len(seen) < 1000


async def test_a_request_that_takes_no_step_is_ended_with_its_worker(settings: Settings, rehearsal: str):
    async with open_backend(settings, rehearsal, cancel_grace=0.3) as backend:
        pid = pid_of(await obey(backend, "steps 1"))
        with anyio.move_on_after(0.1):
            await obey(backend, "stuck 60")
        assert await gone(pid)
        assert pid_of(await obey(backend, "steps 1")) != pid


async def test_a_request_cancelled_while_the_worker_starts_is_never_begun(settings: Settings, rehearsal: str):
    async with open_backend(settings, rehearsal) as backend:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(obey, backend, "stuck 0")
            while backend.state()[0].phase != "starting":
                await anyio.sleep(0)
            tasks.cancel_scope.cancel()
        await obey(backend, "steps 1")
        await anyio.sleep(0.1)
        assert backend.state()[0].engine["done"] == ["steps 1"]


async def test_the_state_tells_the_phases_without_asking_the_engine(settings: Settings, rehearsal: str):
    async with open_backend(settings, rehearsal) as backend:
        assert backend.state()[0].phase == "stopped"
        await backend.warm_up()
        assert backend.state()[0].phase == "starting"
        with anyio.fail_after(60):
            while backend.state()[0].phase != "ready":
                await anyio.sleep(0.02)
        assert backend.state()[0].pid is not None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(obey, backend, "steps 100000")
            with anyio.fail_after(60):
                while backend.state()[0].phase != "busy":
                    await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()


async def test_an_engine_that_cannot_be_loaded_says_why_every_time(
    settings: Settings, rehearsal: str, capfd: pytest.CaptureFixture[str]
):
    async with open_backend(settings, rehearsal.replace("Engine", "Unloadable")) as backend:
        for _ in range(2):
            with pytest.raises(LayerDiffuseError, match="no torch here"):
                await obey(backend, "steps 1")
    assert "ImportError" in capfd.readouterr().err


async def test_what_a_library_prints_never_reaches_standard_output(
    settings: Settings, rehearsal: str, capfd: pytest.CaptureFixture[str]
):
    async with open_backend(settings, rehearsal) as backend:
        await obey(backend, "print")
    said = capfd.readouterr()
    assert said.out == ""
    assert "a library prints this" in said.err
    assert "past Python" in said.err


async def test_closing_ends_the_worker(settings: Settings, rehearsal: str):
    async with open_backend(settings, rehearsal) as backend:
        pid = pid_of(await obey(backend, "steps 1"))
    assert await gone(pid)
    with pytest.raises(WorkerDied, match="closing"):
        await obey(backend, "steps 1")


async def test_models_are_dropped_after_the_idle_time(settings: Settings, rehearsal: str):
    async with open_backend(settings.model_copy(update={"idle_timeout": 0.2}), rehearsal) as backend:
        await obey(backend, "steps 1")
        with anyio.fail_after(60):
            while backend.state()[0].engine.get("done") != []:
                await anyio.sleep(0.05)


async def test_the_worker_of_a_killed_server_ends_too(settings: Settings, rehearsal: str, tmp_path: Path):
    server = tmp_path / "server.py"
    server.write_text(
        textwrap.dedent("""
            import anyio
            from layerdiffuse_mcp.backends.local import LocalBackend
            from layerdiffuse_mcp.settings import Settings
            from tests.tasks import drawing

            async def main():
                backend = LocalBackend(Settings(), "rehearsal:Engine")
                outcome = await backend.run(drawing("steps 1"), {}, lambda _: None)
                print(outcome.warnings[0], flush=True)
                await backend.run(drawing("steps 100000"), {}, lambda _: None)

            if __name__ == "__main__":
                anyio.run(main)
        """)
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(server)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        assert is_alive(worker)
        process.kill()
    assert await gone(worker)
