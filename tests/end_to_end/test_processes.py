"""Processes: clean pipes, quick answers, deaths that hurt nobody else, nothing left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from PIL import Image, PngImagePlugin

from tests.conftest import PROGRAMS
from tests.results import check_files, facts_of, text_of

Connect = Callable[..., AbstractAsyncContextManager[Client]]

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")]

OUTPUT = {"wait_seconds": 600, "preview": False}
SMALL = {"size": "64x64", "seed": 7, "output": {"preview": False}}
APPLE = {"prompt": "a red apple", **SMALL, "options": {"steps": 2, "fit": "as_is"}}
LONG = {"prompt": "a red apple", **SMALL, "options": {"steps": 150, "fit": "as_is"}}


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def is_alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


async def all_gone(pids: list[int], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        await anyio.sleep(0.1)
    return not any(map(is_alive, pids))


def descendants(pid: int) -> list[int]:
    return [found for child in children_of(pid) for found in (child, *descendants(child))]


def request(number: int, method: str, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode() + b"\n"


def greeting() -> bytes:
    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    return request(1, "initialize", **hello) + b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n'


def start(parameters: StdioServerParameters) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [parameters.command, *parameters.args], env=parameters.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


@pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])
async def test_both_eras_draw(connect: Connect, sharing: dict[str, object], mode: str):
    async with connect(mode, **sharing) as client:
        image = facts_of(await client.call_tool("generate_transparent", APPLE))["images"][0]
    assert Path(image["path"]).is_file()


async def test_tools_are_listed_while_the_worker_still_imports_torch(connect: Connect):
    async with connect() as client:
        await client.list_tools()
        with anyio.fail_after(20):
            while facts_of(await client.call_tool("server_status", {}))["worker"] != "starting":
                await anyio.sleep(0.01)
        began = time.monotonic()
        assert len((await client.list_tools()).tools) > 10
        assert time.monotonic() - began < 5
        assert facts_of(await client.call_tool("server_status", {}))["worker"] == "starting"


@pytest.mark.parametrize("stderr", [subprocess.PIPE, None], ids=["heard", "closed"])
def test_what_libraries_print_goes_to_stderr_until_the_process_has_ended(
    stderr: int | None, program: Callable[..., StdioServerParameters]
):
    line = f'exec "{sys.executable}" "{PROGRAMS}/printing.py"' + " 2>&-" * (stderr is None)
    command = ["/bin/sh", "-c", line]
    with subprocess.Popen(
        command, env=program().env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(greeting() + request(2, "tools/list"))
        process.stdin.flush()
        assert [json.loads(process.stdout.readline())["id"] for _ in range(2)] == [1, 2]
        rest, told = process.communicate(timeout=60)
    assert (rest, process.returncode) == (b"", 0)
    if told is not None:
        assert b"printed before" in told
        wanted = (f"{how} {when}" for how in ("printed", "written") for when in ("meanwhile", "after"))
        assert all(text.encode() in told for text in wanted)


def command_of(pid: int) -> str:
    return subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True).stdout


CLIENT = """
    import sys, anyio
    from mcp import Client, StdioServerParameters

    async def hear(progress, total, message):
        if message and message.startswith("denoising"):
            print("denoising", flush=True)

    async def main():
        import os
        server = StdioServerParameters(command=sys.executable, args=["-m", "layerdiffuse_mcp"], env=dict(os.environ))
        async with Client(server) as client:
            arguments = {"prompt": "a red apple", "options": {"steps": 150}, "output": {"preview": False}}
            await client.call_tool("generate_transparent", arguments, progress_callback=hear)

    anyio.run(main)
"""


@pytest.mark.parametrize("victim", ["client", "server"])
async def test_no_process_is_left_when_one_is_killed_in_a_job(
    victim: str, program: Callable[..., StdioServerParameters], folder: Path
):
    script = folder / "client.py"
    script.write_text(textwrap.dedent(CLIENT))
    before = set(folder.rglob("*.png"))
    with subprocess.Popen(
        [sys.executable, str(script)], env=program().env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"denoising\n"
        below = descendants(process.pid)
        assert len(below) >= 2
        os.kill(process.pid if victim == "client" else below[0], signal.SIGKILL)
        assert await all_gone(below)
        process.kill()
    assert set(folder.rglob("*.png")) == before


PHASES = ("starting", "denoising", "decoding", "writing")


@pytest.mark.parametrize("phase", PHASES)
async def test_a_client_that_leaves_in_any_phase_has_read_protocol_alone_and_leaves_no_process_and_no_half_file(
    program: Callable[..., StdioServerParameters], tmp_path: Path, phase: str
):
    out = tmp_path / "out"
    arguments = {
        **APPLE,
        "count": 2,
        "options": {"steps": 8, "fit": "as_is"},
        "output": {**OUTPUT, "save_latent": True},
    }
    call = {"name": "generate_transparent", "arguments": arguments, "_meta": {"progressToken": 1}}
    with start(program(output_dir=out)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(greeting() + request(2, "tools/call", **call))
        process.stdin.flush()
        lines: list[dict[str, Any]] = []
        if phase == "starting":
            deadline = time.monotonic() + 60
            while not workers_of(process.pid) and time.monotonic() < deadline:
                time.sleep(0.05)
        else:
            for line in process.stdout:
                lines.append(json.loads(line))
                message = lines[-1].get("params", {}).get("message") or ""
                if message.startswith(phase) or (phase == PHASES[-1] and lines[-1].get("id") == 2):
                    break
        below = descendants(process.pid)
        assert below
        process.stdin.close()
        lines += map(json.loads, process.stdout)
        assert process.wait(LIMIT) == 0
        assert await all_gone(below)
    assert all(line["jsonrpc"] == "2.0" for line in lines)
    check_files(out)


LIMIT = 40
"""Seconds within which no process may be left: five where the machine is quiet; one that is not gives a process less
than a tenth of a core. What never ends fails all the same."""


@contextmanager
def talking(parameters: StdioServerParameters) -> Iterator[subprocess.Popen[bytes]]:
    """A server whose worker is running, and a client that has to do everything by hand."""
    with start(parameters) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(greeting())
        process.stdin.write(request(2, "tools/list"))
        process.stdin.flush()
        process.stdout.readline(), process.stdout.readline()
        deadline = time.monotonic() + 60
        while not workers_of(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        try:
            yield process
        finally:
            process.kill()


def workers_of(pid: int) -> list[int]:
    return [child for child in children_of(pid) if "spawn_main" in command_of(child)]


def say(process: subprocess.Popen[bytes], number: int, tool: str, **arguments: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(request(number, "tools/call", name=tool, arguments=arguments))
    process.stdin.flush()


def interrupt(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)


def terminate(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)


def close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


def fill(process: subprocess.Popen[bytes]) -> None:
    """More answers than the pipe holds, which nobody reads."""
    assert process.stdin is not None
    for number in range(3, 60):
        process.stdin.write(request(number, "tools/list"))
    process.stdin.flush()
    time.sleep(0.5)


def deafen(process: subprocess.Popen[bytes]) -> None:
    """Nobody can read any more, while standard input stays open."""
    assert process.stdout is not None
    process.stdout.close()
    say(process, 3, "list_jobs")


def stop_worker(process: subprocess.Popen[bytes]) -> None:
    os.kill(workers_of(process.pid)[0], signal.SIGSTOP)


def nothing(process: subprocess.Popen[bytes]) -> None:
    """As it is."""


ENDS = {
    "SIGINT while standard input is open": (nothing, interrupt, 130),
    "SIGTERM while standard input is open": (nothing, terminate, 143),
    "a client that does not read": (fill, close, 0),
    "SIGINT while nobody reads": (fill, interrupt, 130),
    "a client that cannot read any more": (nothing, deafen, 0),
    "a client that goes while the worker is stopped": (stop_worker, close, 0),
}


@pytest.mark.parametrize("case", ENDS)
async def test_no_process_is_left_whatever_the_end(case: str, program: Callable[..., StdioServerParameters]):
    before, end, status = ENDS[case]
    with talking(program()) as process:
        before(process)
        below = descendants(process.pid)
        assert below
        end(process)
        assert process.wait(LIMIT) == status
        assert await all_gone(below, 1)


@pytest.mark.parametrize("end", [close, interrupt])
async def test_work_that_cannot_be_interrupted_holds_nobody_up(
    end: Callable[[subprocess.Popen[bytes]], None], program: Callable[..., StdioServerParameters], folder: Path
):
    large = folder / "large.png"
    if not large.exists():
        Image.new("RGBA", (5000, 5000), (255, 0, 0, 128)).save(large, compress_level=0)
    with talking(program()) as process:
        for number in range(3, 7):
            say(process, number, "compose_layers", layers=[{"image": str(large)}] * 2)
        time.sleep(0.5)
        below = descendants(process.pid)
        end(process)
        process.wait(LIMIT)
        assert await all_gone(below, 1)


async def test_a_server_on_http_ends_at_a_signal_with_its_worker(program: Callable[..., StdioServerParameters]):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    parameters = program(drain_seconds=0)
    parameters.args += ["--http", "--port", str(port)]
    url = f"http://127.0.0.1:{port}/mcp"
    with start(parameters) as process:
        try:
            with anyio.fail_after(60):
                await answering(url)
                async with Client(streamable_http_client(url)) as client:
                    drawing = {**LONG, "output": {"wait_seconds": 0}}
                    assert not (await client.call_tool("generate_transparent", drawing)).is_error
                while not workers_of(process.pid):
                    await anyio.sleep(0.05)
            below = descendants(process.pid)
            terminate(process)
            process.wait(LIMIT)
            assert await all_gone(below, 1)
        finally:
            process.kill()


async def answering(url: str) -> None:
    """Return once a server answers there."""
    async with httpx2.AsyncClient() as web:
        while True:
            with suppress(httpx2.ConnectError):
                await web.get(url)
                return
            await anyio.sleep(0.1)


async def test_a_picture_that_cannot_be_told_does_not_end_the_session(
    connect: Connect, folder: Path, sharing: dict[str, object]
):
    path = folder / os.fsdecode(b"half-\xff.png")
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt("layerdiffuse", json.dumps({"prompt": "\ud800"}))
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(path, pnginfo=notes)
    (folder / "half.png").symlink_to(path)
    async with connect(**sharing) as client:
        with anyio.fail_after(60):
            assert "half-?.png" in text_of(await client.call_tool("inspect_image", {"image": str(folder / "half.png")}))
            assert (await client.list_tools()).tools


async def test_an_output_folder_that_cannot_be_written_is_an_error(
    connect: Connect, folder: Path, sharing: dict[str, object]
):
    (folder / "a-file").write_text("not a folder")
    async with connect(**sharing, output_dir=folder / "a-file" / "out") as client:
        result = await client.call_tool("generate_transparent", APPLE)
        assert result.is_error
        assert "cannot be written" in text_of(result)
        assert facts_of(await client.call_tool("list_models", {}))["models"]
