"""What a picture costs: the bytes a pixel that each operation states, held at its peak in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import picture_memory
from tests.programs.picture_memory import FIXED, OPERATIONS, SIDE

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="peaks are read by getrusage")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noise")
    picture_memory.write_files(folder)
    return folder


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_takes_the_bytes_a_pixel_that_it_states(name: str, folder: Path):
    command = [sys.executable, picture_memory.__file__, name, str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert float(ran.stdout) <= OPERATIONS[name][1] * SIDE**2 + FIXED
