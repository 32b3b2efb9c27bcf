"""What a picture costs: the bytes a pixel that each operation states, held at its peak in a process of its own."""

import os
import subprocess
import sys

import pytest

from tests.programs import picture_memory
from tests.programs.picture_memory import FIXED, OPERATIONS, SIDE

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The bytes of each operation."""
    folder = tmp_path_factory.mktemp("noise")
    picture_memory.write_files(folder)
    command = [sys.executable, picture_memory.__file__, str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    lines = [line.split(" ", 1) for line in ran.stdout.splitlines()]
    return {name: int(peak) for peak, name in lines}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_takes_the_bytes_a_pixel_that_it_states(name: str, taken: dict[str, int]):
    assert taken[name] <= OPERATIONS[name][1] * SIDE**2 + FIXED
