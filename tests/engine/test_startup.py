"""What a worker imports before it draws, and that it starts whatever its libraries do."""

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from layerdiffuse_mcp.engine import startup

DRAW = """
import gc
import sys
from pathlib import Path

from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.engine.startup import load_engine
from layerdiffuse_mcp.jobs.planner import plan
from layerdiffuse_mcp.settings import Settings

settings = Settings(model="pocket", output_dir=Path(sys.argv[1]), device="cpu")
engine = load_engine()(settings)
planned = plan(GenerateRequest(prompt="a red apple", width=64, height=64, fit="as_is", steps=1), settings)
outcome = engine.run(planned.tasks[0], planned.inputs, lambda _: None)
assert outcome.encoded[0].data.startswith(b"\\x89PNG")
heavy = {"transformers", "scipy", "sympy", "torch._dynamo", "torch._inductor", "torch.distributed.tensor", "accelerate"}
print(sorted(heavy & sys.modules.keys()))
assert gc.isenabled()
assert gc.get_freeze_count() > 100_000

import diffusers, scipy.stats, torch, transformers  # whoever wants the rest gets all of it
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)) == 2
assert transformers.is_torch_available() and transformers.CLIPTextConfig
assert scipy.stats.beta and diffusers.DPMSolverMultistepScheduler
"""


def test_drawing_imports_no_compiler_transformers_or_scipy_and_the_collector_passes_over_it(tmp_path: Path) -> None:
    """Each takes 0.5 s to 2 s; diffusers imports all of them unless it is kept from it."""
    done = subprocess.run([sys.executable, "-c", DRAW, str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert "takes longer" not in done.stderr


ALLOCATE = """
import resource
import sys

from layerdiffuse_mcp.engine.startup import load_engine

engine = load_engine()
import torch
from layerdiffuse_mcp.engine.device.memory import memory_free, memory_used


def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**25)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


faults()
print(faults())
kept = memory_used()
memory_free(torch.device("cpu"))
print(kept - memory_used())
"""
BLOCK = 4 * 2**25


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's allocator")
@pytest.mark.parametrize(("environment", "kept"), [({}, True), ({"MALLOC_MMAP_MAX_": "65536"}, False)])
def test_freed_memory_is_kept_for_the_next_tensor_until_free_memory_is_asked_for(
    environment: dict[str, str], kept: bool
) -> None:
    small_pages = {"THP_MEM_ALLOC_ENABLE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATE],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **small_pages, **environment},
    )
    assert done.returncode == 0, done.stderr
    faults, given_back = map(int, done.stdout.split())
    pages = 5 * BLOCK // mmap.PAGESIZE
    assert faults < pages / 100 if kept else faults > pages / 2
    assert given_back > BLOCK / 2 if kept else given_back < BLOCK / 2


@pytest.mark.parametrize("library", startup.UNUSED)
def test_an_engine_that_needs_what_is_left_out_starts_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, library: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / library).mkdir()
    (tmp_path / library / "__init__.py").touch()
    (tmp_path / f"needs_{library}.py").write_text(f"import {library}\n\nclass Engine: ...\n")
    assert startup.load_engine(f"needs_{library}:Engine").__name__ == "Engine"
    del sys.modules[library]
    assert "the start takes longer" in caplog.text


def test_what_was_imported_before_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    import scipy

    with startup.lean_imports():
        assert sys.modules["scipy"] is scipy
    assert sys.modules["scipy"] is scipy
