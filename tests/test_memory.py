"""The limit on the memory of a test run: it is seen whoever takes it, and it fails the run."""

import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from tests.memory import tree_memory

HELD = 64 * 2**20
HOLD = f"held = b'x' * {HELD}; print('held', flush=True); input()"


def test_memory_of_a_grandchild_counts():
    below = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", below], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        assert HELD < tree_memory(psutil.Process(child.pid), limit=HELD) < 2 * HELD
        child.stdin.write("\n")


def test_memory_that_processes_share_counts_once_where_it_would_be_above_the_limit():
    forked = textwrap.dedent(f"""
        import os, sys
        held = os.urandom({HELD})
        for _ in range(3):
            if os.fork() == 0:
                break
        os.write(1, b"held\\n")
        sys.stdin.readline()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", forked], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for _ in range(4):
            assert child.stdout.readline() == "held\n"
        tree = psutil.Process(child.pid)
        assert HELD < tree_memory(tree, limit=2 * HELD) < 2 * HELD
        assert tree_memory(tree, limit=20 * HELD) > 2 * HELD
        child.stdin.write("\n" * 4)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_above_its_limit_fails_and_says_what_ran(tmp_path: Path, workers: str):
    (tmp_path / "conftest.py").write_text(
        "from tests import memory\n"
        "memory.EVERY = 0.05\n"
        "def pytest_configure(config):\n"
        "    if not hasattr(config, 'workerinput'):\n"
        "        config.pluginmanager.register(memory.MemoryLimit(limit=1), 'memory-limit')\n"
    )
    test = f"import time\ndef test_large():\n    held = b'x' * {HELD}\n    time.sleep(1)\n"
    (tmp_path / "test_it.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", tmp_path, "-n", workers, tmp_path]
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 1, done.stdout
    assert "1 passed" in done.stdout
    assert "test_large" in done.stdout.partition("FAILED: the run took")[2]
