"""What holds on a graphics card: `make gpu`, or `pytest -m gpu tests/gpu --device cpu` to rehearse the rest without."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.engine.model_manager import ModelManager
from layerdiffuse_mcp.engine.sampling.noise import BatchNoise
from layerdiffuse_mcp.errors import Cancelled
from layerdiffuse_mcp.families.memory import LEVELS
from layerdiffuse_mcp.families.registry import METHODS, ROUTES, task_inputs
from layerdiffuse_mcp.settings import Settings
from tests.narrow import write_lora, write_models
from tests.saving import Engine, same_pixels

pytestmark = pytest.mark.gpu

HALF_APART = 8.0
"""Levels of 255 by which a narrow network's picture in half precision may be off that in float32, on average."""
ROUTED = [(task, family) for task, family in ROUTES if family in ("sd15", "sdxl")]
Start = Callable[..., Engine]


@pytest.fixture(scope="module")
def device(pytestconfig: pytest.Config) -> str:
    name: str = pytestconfig.getoption("--device") or "cuda"
    if name == "cuda" and not torch.cuda.is_available():
        pytest.fail("this needs a CUDA device; --device cpu rehearses what does not")
    return name


@pytest.fixture
def cuda(device: str) -> None:
    """For what a CPU cannot stand in for."""
    if device != "cuda":
        pytest.skip("only a CUDA device has this")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device")
    write_models(folder / "models")
    write_lora(folder / "models" / "loras" / "spice.safetensors")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 4), dtype=np.uint8)).save(folder / "given.png")
    return folder


@pytest.fixture
def start(folder: Path, device: str) -> Iterator[Start]:
    """Starts engines on the device with the settings given."""
    engines: list[Engine] = []

    def start(**given: Any) -> Engine:
        common = {"output_dir": folder / "out", "models_dir": folder / "models", "device": device}
        engines.append(Engine(Settings(**common | given)))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def draw(
    engine: Engine,
    on_step: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] | None = None,
    **fields: Any,
) -> Outcome:
    shape = {"width": 64, "height": 64, "fit": "as_is", "steps": 2, "seed": 5}
    given = {"prompt": "a cup", "model": "tiny-sd15"} | shape | fields
    return engine.run(GenerateRequest.model_validate(given), on_step, cancelled)


def pixels(outcome: Outcome) -> np.ndarray:
    return np.stack([np.asarray(Image.open(image.path).convert("RGBA")) for image in outcome.images]).astype(float)


def same(one: Outcome, other: Outcome) -> bool:
    return all(same_pixels(a.path, b.path) for a, b in zip(one.images, other.images, strict=True))


def half(device: str) -> str:
    return "float16" if device == "cuda" else "bfloat16"


def test_noise_is_that_of_a_cpu_bit_for_bit(device: str):
    there, here = (BatchNoise((1, 2), (4, 8, 8), device=name) for name in (device, "cpu"))
    for _ in range(3):
        assert torch.equal(there().cpu(), here())
    brownian = [noise.brownian(0.1, 10.0)(torch.tensor(9.0), torch.tensor(4.0)) for noise in (there, here)]
    assert torch.equal(brownian[0].cpu(), brownian[1])


@pytest.mark.parametrize(("task", "family"), ROUTED, ids=[f"{task}-{family}" for task, family in ROUTED])
def test_every_method_draws_in_half_precision_what_it_draws_in_float32(
    start: Start, folder: Path, device: str, task: Any, family: str
):
    given = {"model": f"tiny-{family}", "task": task}
    given["inputs"] = {role: folder / "given.png" for role in task_inputs(task, family)}
    exact, fast = (draw(start(dtype=dtype), **given) for dtype in ("float32", half(device)))
    wanted = [role for method in ROUTES[task, family] for role in METHODS[method].outputs]
    assert {image.role for image in fast.images} <= {*wanted}
    assert np.abs(pixels(fast) - pixels(exact)).mean() <= HALF_APART


def test_pictures_are_the_same_bit_for_bit_at_every_offload_level(start: Start):
    request = {"model": "tiny-sdxl", "prompt": "a cup <lora:spice:0.5>"}
    drawn = [draw(start(offload=level), **request) for level in LEVELS]
    assert all(same(one, other) for one, other in pairwise(drawn))


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("phase", ["loading", "denoising", "decoding"])
def test_memory_that_runs_out_in_a_phase_costs_a_level_and_a_warning(
    start: Start, monkeypatch: pytest.MonkeyPatch, phase: str
):
    plain = draw(start())
    relieve, filling = ModelManager.relieve, []

    def relieved(manager: ModelManager) -> bool:
        filling[1:] = []
        torch.cuda.set_per_process_memory_fraction(1.0)
        return relieve(manager)

    def cut_off(step: Progress) -> None:
        """Allow no more than there is, and fill up what the allocator holds of that."""
        if filling or not step.message.startswith(phase):
            return
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1e-6)
        filling.append(step)
        for size in (2**24, 2**20, 2**16, 2**12, 2**9):
            with suppress(torch.OutOfMemoryError):
                while True:
                    filling.append(torch.empty(size, dtype=torch.uint8, device="cuda"))

    monkeypatch.setattr(ModelManager, "relieve", relieved)
    try:
        again = draw(start(), cut_off)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert filling
    assert any("ran out" in warning for warning in again.warnings)
    assert same(again, plain)


def test_a_cancelled_drawing_ends_within_a_second(start: Start):
    engine = start()
    draw(engine)
    wanted: list[float] = []

    def stop(step: Progress) -> None:
        if not wanted and step.message.startswith("denoising"):
            wanted.append(time.monotonic())

    with pytest.raises(Cancelled):
        draw(engine, stop, lambda: bool(wanted), steps=150)
    assert time.monotonic() - wanted[0] < 1


@pytest.mark.usefixtures("cuda")
def test_fifty_drawings_leave_no_memory_behind(start: Start):
    engine = start()
    held: list[tuple[int, int]] = []
    for seed in range(50):
        draw(engine, seed=seed, prompt=f"a cup, number {seed}")
        held.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert held[-1][0] <= held[9][0] + 2**20
    assert held[-1][1] <= held[9][1] * 1.05


DRAW = """
import sys
from pathlib import Path
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.settings import Settings
from tests.saving import Engine

engine = Engine(Settings(output_dir=Path(sys.argv[1]), models_dir=Path(sys.argv[2]), device=sys.argv[3]))
for _ in range(5):
    given = {"prompt": "a cup", "model": "tiny-sd15", "width": 64, "height": 64, "fit": "as_is", "steps": 2, "seed": 5}
    print(engine.run(GenerateRequest.model_validate(given)).images[0].path, flush=True)
"""


def test_a_second_process_on_the_device_draws_the_same_and_harms_nothing(
    start: Start, folder: Path, device: str, tmp_path: Path
):
    engine = start()
    plain = draw(engine)
    command = [sys.executable, "-c", DRAW, str(tmp_path), str(folder / "models"), device]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        first = other.stdout.readline().strip()
        assert same(draw(engine), plain)
        theirs = [first, *other.stdout.read().split("\n")]
    assert other.returncode == 0
    assert all(same_pixels(Path(path), plain.images[0].path) for path in filter(None, theirs))
