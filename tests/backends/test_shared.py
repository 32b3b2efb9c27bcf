"""Workers that several servers share: one process, found or started, that outlives each of them."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from multiprocessing import AuthenticationError
from multiprocessing import connection as connections
from pathlib import Path

import anyio
import platformdirs
import psutil
import pytest

from layerdiffuse_mcp import engine
from layerdiffuse_mcp.api.outcome import Progress
from layerdiffuse_mcp.backends import shared
from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.backends.places import Place
from layerdiffuse_mcp.errors import LayerDiffuseError, WorkerDied
from layerdiffuse_mcp.jobs.job import State
from layerdiffuse_mcp.settings import Settings
from tests.backends.test_local import gone, obey, pid_of
from tests.jobs.opened import ask, open_jobs
from tests.tasks import drawing

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform == "win32", reason="tried on POSIX alone")]

FOREVER = "steps 1000000"
WAITS = "waits for another client's job"


def workers() -> list[psutil.Process]:
    """Those of this test's state folder."""
    folder = str(platformdirs.user_state_path("layerdiffuse") / "workers")
    return [one for one in psutil.process_iter(["cmdline"]) if folder in " ".join(one.info["cmdline"] or ())]


@pytest.fixture(autouse=True)
def own_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A state folder of the test's own, whose workers are gone after it."""
    with tempfile.TemporaryDirectory(prefix="state-", ignore_cleanup_errors=True) as short:  # as names of sockets are
        monkeypatch.setenv("XDG_STATE_HOME", short)
        monkeypatch.setattr(shared, "LINGER", 0.5)
        yield
        for process in workers():
            process.kill()


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


def pid(backend: LocalBackend) -> int:
    found = backend.state()[0].pid
    assert found is not None
    return found


async def test_two_servers_use_one_process_that_is_no_child_of_either(sharing: Settings, rehearsal: str):
    async with servers(sharing, rehearsal) as (one, other):
        pids = [pid_of(await obey(backend, "steps 1")) for backend in (one, other)]
        assert len(set(pids)) == 1 == len(workers())
        assert [pid(backend) for backend in (one, other)] == pids
        assert pids[0] not in [child.pid for child in psutil.Process().children(recursive=True)]
        assert os.getsid(pids[0]) != os.getsid(0)
        folder = shared.private_folder()
        assert [path.stat().st_mode & 0o777 for path in (folder, folder / "key")] == [0o700, 0o600]
        assert [path.stat().st_mode & 0o777 for path in folder.iterdir() if path.is_socket()] == [0o600]
    assert await gone(pids[0])
    assert not [path for path in folder.iterdir() if path.is_socket()]


async def test_servers_that_start_at_once_start_one_worker(sharing: Settings, rehearsal: str):
    async with servers(sharing, rehearsal, 3) as opened:
        async with anyio.create_task_group() as tasks:
            for backend in opened:
                tasks.start_soon(backend.warm_up)
        assert len({pid(backend) for backend in opened}) == 1 == len(workers())


async def test_what_an_engine_reads_has_to_be_the_same_and_nothing_else(
    sharing: Settings, rehearsal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def name(**changes: object) -> str:
        settings = shared.engine_settings(sharing.model_copy(update=changes), Place())
        return shared.pool_name(settings, rehearsal, Place())

    alike = name(output_dir=tmp_path / "elsewhere", queue_size=3, history=False, log_file=tmp_path / "log")
    assert alike == name()
    others = [
        name(max_memory=3.0),
        name(dtype="bfloat16"),
        name(models_dir=tmp_path / "others"),
        name(previews=True, output_dir=tmp_path / "elsewhere"),
        name(previews=True, output_dir=tmp_path / "elsewhere still"),
    ]
    monkeypatch.setenv("XDG_SESSION_ID", "another")
    assert name() == alike
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert len({name(), alike, *others}) == 7


def test_the_engine_reads_none_of_the_settings_in_which_servers_may_differ():
    read = {
        name
        for path in Path(engine.__path__[0]).rglob("*.py")
        for name in re.findall(r"settings\.(\w+)", path.read_text())
    }
    assert read & {*shared.SERVERS_OWN} == set()
    assert {"device", "offload"} <= read


def test_a_worker_imports_nothing_of_the_project_that_it_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), *sys.path])
    assert shared.import_path() == sys.path[2:]


async def test_a_worker_is_busy_for_the_other_server_whose_task_waits_for_it(sharing: Settings, rehearsal: str):
    async with open_jobs(sharing, rehearsal) as one, open_jobs(sharing, rehearsal) as other:
        long = ask(one, FOREVER)
        await until(lambda: long.progress.fraction > 0)
        await other.backend.warm_up()
        await until(lambda: other.backend.state()[0].phase == "busy")
        waiting = ask(other, "steps 1")
        await until(lambda: other.progress(waiting).message == WAITS)
        assert [job.id for job in other.newest_first()] == [waiting.id]
        one.cancel(long)
        await other.follow(waiting, 60)
        assert waiting.state is State.DONE
        await until(lambda: one.backend.state()[0].engine["done"] == ["steps 1"])
        await until(lambda: {jobs.backend.state()[0].phase for jobs in (one, other)} == {"ready"})


async def test_a_task_that_waits_for_another_server_can_be_cancelled_at_once(sharing: Settings, rehearsal: str):
    async with open_jobs(sharing, rehearsal) as one, servers(sharing, rehearsal, 1, grace=1000) as (other,):
        long = ask(one, FOREVER)
        await until(lambda: long.progress.fraction > 0)
        with anyio.fail_after(60), anyio.CancelScope() as scope:
            await other.run(drawing("steps 1"), {}, lambda _: scope.cancel())
        assert scope.cancelled_caught
        assert long.state is State.RUNNING
        one.cancel(long)
        assert pid_of(await obey(other, "steps 2")) == pid(other)
        assert other.state()[0].engine["done"] == ["steps 2"]


async def test_servers_take_turns_at_a_worker(sharing: Settings, rehearsal: str):
    async with open_jobs(sharing, rehearsal) as one, open_jobs(sharing, rehearsal) as other:
        first = ask(one, "steps 10")
        await until(lambda: first.progress.fraction > 0)
        mine, others = [ask(one, "steps 4") for _ in range(3)], [ask(other, "steps 5") for _ in range(2)]
        for jobs, asked in ((one, mine), (other, others)):
            for job in asked:
                await jobs.follow(job, 60)
        done = one.backend.state()[0].engine["done"]
    assert (done[:2], done[-1]) == (["steps 10", "steps 5"], "steps 4")


async def test_two_servers_use_all_workers_and_prefer_one_that_is_idle(sharing: Settings, rehearsal: str):
    two = sharing.model_copy(update={"workers": 2})
    async with open_jobs(two, rehearsal) as one, open_jobs(two, rehearsal) as other:
        long = ask(one, FOREVER)
        await until(lambda: long.progress.fraction > 0)
        await other.backend.warm_up()
        await until(lambda: [state.phase for state in other.backend.state()] == ["busy", "ready"])
        for _ in range(2):
            job = ask(other, "steps 1")
            await other.follow(job, 60)
            assert job.state is State.DONE
        assert long.state is State.RUNNING
        assert len(workers()) == 2


async def test_a_model_is_unloaded_by_any_server(sharing: Settings, rehearsal: str):
    async with servers(sharing, rehearsal) as (one, other):
        await obey(one, "steps 1")
        await other.warm_up()
        await until(lambda: other.state()[0].phase == "ready")
        assert list(other.state()[0].models) == ["a-base"]
        assert await other.unload() == ["steps 1"]
        await until(lambda: not one.state()[0].models)


async def test_a_worker_that_dies_fails_one_task_and_the_one_that_waited_is_done_by_another(
    sharing: Settings, rehearsal: str
):
    async with servers(sharing, rehearsal) as (one, other):
        victim = pid_of(await obey(one, "steps 1"))
        begun = anyio.Event()

        async def run() -> None:
            with pytest.raises(WorkerDied, match=r"other servers use too.*\.log"):
                await one.run(drawing(FOREVER), {}, lambda _: begun.set())

        def see(progress: Progress) -> None:
            if progress.message == WAITS:
                os.kill(victim, signal.SIGKILL)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await begun.wait()
            assert pid_of(await other.run(drawing("steps 1"), {}, see)) == pid(other) != victim
        assert pid_of(await obey(one, "steps 1")) == pid(other)
        assert [process.pid for process in workers()] == [pid(other)]


SERVER = """
    import anyio
    from layerdiffuse_mcp.api.plan import GroupPlan
    from layerdiffuse_mcp.backends.local import LocalBackend
    from layerdiffuse_mcp.settings import Settings
    from tests.tasks import drawing

    async def main():
        backend = LocalBackend(Settings(share_workers=True), "rehearsal:Engine")
        outcome = await backend.run(TASK, {}, lambda progress: print(progress.message, flush=True))
        print(len(outcome.parts), "parts", flush=True)
        await anyio.sleep_forever()

    anyio.run(main)
"""


@contextmanager
def running(settings: Settings, folder: Path, task: str) -> Iterator[subprocess.Popen[str]]:
    """A server process with a task."""
    script = folder / "server.py"
    script.write_text(textwrap.dedent(SERVER).replace("TASK", task))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "LAYERDIFFUSE_DEVICE": settings.device,
        "LAYERDIFFUSE_MODELS_DIR": str(settings.models_dir),
    }
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    return iter(process.stdout.readline, "")


async def test_the_first_server_is_killed_in_its_job_and_the_model_stays(
    sharing: Settings, rehearsal: str, tmp_path: Path
):
    async with servers(sharing, rehearsal, 1) as (other,):
        with running(sharing, tmp_path, f"drawing('{FOREVER}')") as first:
            assert "step 1/" in next(lines_of(first))
            [worker] = workers()

            def see(progress: Progress) -> None:
                if progress.message == WAITS:
                    first.kill()

            assert pid_of(await other.run(drawing("steps 1"), {}, see)) == worker.pid == pid(other)
        state = other.state()[0].engine
        assert (state["done"], state["loads"]) == (["steps 1"], ["a-base"])


async def test_a_server_that_is_stopped_holds_up_nobody_and_misses_nothing(
    sharing: Settings, rehearsal: str, tmp_path: Path
):
    more_than_a_socket_holds = "GroupPlan(plans=(drawing('steps 20'), *[drawing('draw', count=8)] * 10))"
    async with servers(sharing, rehearsal, 1) as (other,):
        with running(sharing, tmp_path, more_than_a_socket_holds) as stopped:
            lines = lines_of(stopped)
            assert "step 1/" in next(lines)
            stopped.send_signal(signal.SIGSTOP)
            with anyio.fail_after(60):
                assert pid_of(await obey(other, "steps 1")) == pid(other)
            assert other.state()[0].engine["done"][1:] == ["steps 1"]
            stopped.send_signal(signal.SIGCONT)
            assert next(line for line in lines if "step" not in line) == "11 parts\n"


async def test_a_task_that_does_not_stop_when_its_server_is_killed_does_not_hold_up_the_others_for_ever(
    sharing: Settings, rehearsal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shared, "GRACE", 0.3)
    async with servers(sharing, rehearsal, 1) as (other,):
        await other.warm_up()
        victim = pid(other)
        with running(sharing, tmp_path, "drawing('stuck 600')") as first:
            await until(lambda: other.state()[0].phase == "busy")
            first.kill()
        assert pid_of(await obey(other, "steps 1")) == pid(other) != victim


async def test_a_worker_stays_a_while_for_the_next_server(
    sharing: Settings, rehearsal: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shared, "LINGER", 600)
    pids: set[int] = set()
    for _ in range(2):
        async with servers(sharing, rehearsal, 1) as (only,):
            pids.add(pid_of(await obey(only, "steps 1")))
    assert len(pids) == 1 == len(workers())


async def test_an_engine_that_cannot_be_loaded_says_why_to_each_server(sharing: Settings, rehearsal: str):
    async with servers(sharing, rehearsal.replace("Engine", "Unloadable")) as opened:
        for backend in opened:
            with pytest.raises(LayerDiffuseError, match="no torch here"):
                await obey(backend, "steps 1")


async def test_who_does_not_know_the_key_is_turned_away_and_holds_up_nobody(sharing: Settings, rehearsal: str):
    async with servers(sharing, rehearsal) as (one, other):
        await one.warm_up()
        [address] = [str(path) for path in shared.private_folder().iterdir() if path.is_socket()]
        with connections.Client(address):  # says nothing
            with pytest.raises((AuthenticationError, EOFError)):
                connections.Client(address, authkey=b"another").close()
            assert pid_of(await obey(other, "steps 1")) == pid(one)


def readable_by_others(folder: Path, _: pytest.MonkeyPatch) -> None:
    folder.chmod(0o750)


def of_another_key(folder: Path, _: pytest.MonkeyPatch) -> None:
    (folder / "key").unlink()


def silent(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "PATIENCE", 0.5)
    [worker] = workers()
    worker.suspend()


def of_a_long_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / ("x" * 100)))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (readable_by_others, "workers has to be yours alone"),
        (of_another_key, "has another key"),
        (silent, "does not answer"),
        (of_a_long_name, "too long"),
    ],
)
async def test_a_server_that_cannot_share_says_why_and_starts_its_own_worker(
    spoil: Callable[[Path, pytest.MonkeyPatch], None],
    why: str,
    sharing: Settings,
    rehearsal: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    async with servers(sharing, rehearsal) as (one, other):
        await one.warm_up()
        with monkeypatch.context() as changed:
            spoil(shared.private_folder(), changed)
            own = pid_of(await obey(other, "steps 1"))
        assert own in [child.pid for child in psutil.Process().children()]
        assert own != pid(one)
    assert re.search(f"starts its own: .*{why}", caplog.text)
    assert await gone(own)
