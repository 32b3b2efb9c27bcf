"""The end of the process: in time, with its children, and at the second signal at once."""

import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

STUCK = """
    import os, subprocess, sys, time
    from layerdiffuse_mcp.server import ending

    ending.GRACE = float(sys.argv[1])
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stdout=2)
    ending.Ending().at_signals(lambda: os.write(1, b"stopping\\n"))
    print(child.pid, flush=True)
    while True:  # nothing that it is asked interrupts it
        time.sleep(1)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("grace", "signals"), [(0.2, 1), (600, 2)])
def test_a_stuck_process_ends_in_time_or_at_the_second_signal(
    number: signal.Signals, grace: float, signals: int, tmp_path: Path
):
    script = tmp_path / "stuck.py"
    script.write_text(textwrap.dedent(STUCK))
    command = [sys.executable, str(script), str(grace)]
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path))}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            child = psutil.Process(int(process.stdout.readline()))
            process.send_signal(number)
            assert process.stdout.readline() == "stopping\n"
            if signals == 2:
                process.send_signal(number)
            assert process.wait(60) == 128 + number
        finally:
            process.kill()
    assert ends(child)


def ends(process: psutil.Process, seconds: float = 30) -> bool:
    """Whether a process that was killed is gone in time; a zombie is, and waits for its parent."""
    deadline = time.monotonic() + seconds
    with suppress(psutil.NoSuchProcess):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
    return True
