"""Where a model's networks are while it draws: the same pictures at every level, in the memory there is."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.requests import GenerateRequest, PrepareRequest
from layerdiffuse_mcp.engine.device.placement import Placement
from layerdiffuse_mcp.engine.model_manager import SHARE
from layerdiffuse_mcp.engine.models.offload import estimated_sizes, fitting
from layerdiffuse_mcp.engine.transparency.latent_file import read_latent
from layerdiffuse_mcp.engine.weights.networks import VectorUNet
from layerdiffuse_mcp.engine.weights.patcher import LowRank
from layerdiffuse_mcp.errors import LayerDiffuseError, OutOfMemory
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.families.spec import MEASURED, Task
from layerdiffuse_mcp.settings import Settings
from tests.narrow import write_lora, write_models
from tests.saving import Engine, same_pixels

GB = 1e9
COPIES = ("first", "second", "third")
DRAWN = {
    "sd15": {"task": Task.LAYERS, "layer_prompts": {"background": "a table"}},
    "sdxl": {"task": Task.BACKGROUND_FROM_FOREGROUND},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("offload")
    write_models(folder / "models")
    write_lora(folder / "models" / "loras" / "spice.safetensors")
    for name in COPIES:
        shutil.copy(folder / "models" / "tiny-sd15.safetensors", folder / "models" / f"{name}.safetensors")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 4), dtype=np.uint8)).save(folder / "given.png")
    return folder


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Engine]]:
    """Starts engines with the settings given."""
    engines: list[Engine] = []

    def start(**settings) -> Engine:
        common = {"output_dir": folder / "out", "models_dir": folder / "models", "device": "cpu"}
        engines.append(Engine(Settings(**common | settings)))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def draw(engine: Engine, on_step: Callable[[Progress], None] = lambda _: None, **fields) -> Outcome:
    shape = {"width": 64, "height": 64, "steps": 2}
    given = {"model": "tiny-sd15", "prompt": "a red apple", "seed": 5, "save_latent": True} | shape | fields
    return engine.run(GenerateRequest(**given), on_step)


def loaded(engine: Engine) -> dict[str, dict]:
    status = engine.status()
    return {model["model"]: model for model in status["loaded"]}


def prepare(engine: Engine, name: str) -> None:
    engine.run(PrepareRequest(model=name), lambda _: None)


def same(one: Outcome, other: Outcome) -> bool:
    latents = ([read_latent(path).latent for path in outcome.latents] for outcome in (one, other))
    return all(torch.equal(a, b) for a, b in zip(*latents, strict=True)) and all(
        same_pixels(a.path, b.path) for a, b in zip(one.images, other.images, strict=True)
    )


@pytest.mark.parametrize(("family", "dtype"), [("sd15", "float32"), ("sdxl", "bfloat16")])
def test_pictures_are_the_same_bit_for_bit_at_every_level(start, folder, family, dtype) -> None:
    inputs = {"foreground": folder / "given.png"} if family == "sdxl" else {}
    request = DRAWN[family] | {"model": f"tiny-{family}", "prompt": "a cup <lora:spice:0.5>", "inputs": inputs}
    whole = draw(start(offload="none", dtype=dtype), **request)
    for level in ("in_turn", "layers"):
        engine = start(offload=level, dtype=dtype)
        assert same(draw(engine, **request), whole)
        assert same(draw(engine, **request), whole)


def test_fewer_of_the_networks_are_in_memory_at_once_the_lower_the_level(start) -> None:
    most = {}
    for level in ("none", "in_turn", "layers"):
        engine = start(offload=level)
        seen: dict[str, int] = {}

        def look(step: Progress, engine: Engine = engine, seen: dict[str, int] = seen) -> None:
            if facts := loaded(engine).get("tiny-sdxl"):
                seen[step.message.split()[0]] = facts["bytes"]

        draw(engine, look, model="tiny-sdxl")
        assert loaded(engine)["tiny-sdxl"]["offload"] == level
        most[level] = seen
    assert most["none"]["denoising"] > most["in_turn"]["denoising"] > 2 * most["layers"]["denoising"]
    assert most["none"]["decoding"] > 2 * most["in_turn"]["decoding"]


def test_the_level_follows_from_the_memory_that_models_may_take(start) -> None:
    engine = start(offload="none")
    prepare(engine, "tiny-sdxl")
    weights = loaded(engine)["tiny-sdxl"]["bytes"]
    activations = MEASURED[1] * 64 * 64
    for allowed, level in ((1.1 * weights, "none"), (0.9 * weights, "in_turn"), (0, "layers")):
        engine = start(max_memory=(allowed + activations) / GB)
        prepare(engine, "tiny-sdxl")
        assert loaded(engine)["tiny-sdxl"]["offload"] == level


@pytest.mark.parametrize(
    ("family", "size", "gigabytes", "level"),
    [("sdxl", 1024, 12, "none"), ("sdxl", 1024, 8, "in_turn"), ("sdxl", 1024, 4, "layers"), ("sd15", 512, 4, "none")],
)
def test_real_models_in_half_precision_fit_into_usual_graphics_cards(family, size, gigabytes, level) -> None:
    half = Placement(torch.device("mps"), torch.float16)
    sizes = estimated_sizes(FAMILIES[family], half).drawing(size * size, size * size, half.dtype.itemsize)
    assert fitting(sizes, int(gigabytes * 2**30 * SHARE)) == level


def test_a_model_that_cannot_fit_says_what_it_takes_and_what_there_is(start) -> None:
    engine = start(max_memory=0.0005)
    with pytest.raises(OutOfMemory, match=r"tiny-sdxl takes \d MB .* 500 kB for models.*LAYERDIFFUSE_MAX_MEMORY"):
        draw(engine, model="tiny-sdxl")
    assert loaded(engine) == {}


def test_the_model_that_was_not_used_for_longest_makes_room(start) -> None:
    engine = start()
    prepare(engine, "first")
    size = loaded(engine)["first"]["bytes"]
    engine = start(max_memory=(2.5 * size + MEASURED[1] * 64 * 64) / GB)
    for name, stay in (
        ("first", {"first"}),
        ("second", {"first", "second"}),
        ("first", {"first", "second"}),
        ("third", {"first", "third"}),
        ("second", {"second", "third"}),
    ):
        prepare(engine, name)
        assert set(loaded(engine)) == stay


def test_a_method_that_was_used_before_comes_back_without_products_where_memory_is_spare(start, monkeypatch) -> None:
    products: list[object] = []
    add_to = LowRank.add_to
    monkeypatch.setattr(LowRank, "add_to", lambda *given: products.append(given) or add_to(*given))
    fields = {"model": "tiny-sdxl", "steps": 1}
    counted = []
    for offload in ("none", "in_turn"):
        engine = start(offload=offload)
        first = draw(engine, **fields)
        draw(engine, task=Task.BLENDED_FROM_FOREGROUND, inputs={"foreground": first.images[0].path}, **fields)
        prepare(engine, "tiny-sd15")  # beside it, as there is room
        products.clear()
        assert same(first, draw(engine, **fields))
        counted.append(len(products))
    assert counted[0] == 0 < counted[1]


@pytest.fixture
def short_of_memory() -> Iterator[Callable[[Exception, int], None]]:
    """Lets the next calls of any UNet raise an error, as an allocator that finds no memory does."""
    left: list[Exception] = []

    def hook(module: nn.Module, _: object) -> None:
        if left and isinstance(module, VectorUNet):
            raise left.pop()

    handle = register_module_forward_pre_hook(hook)
    yield lambda error, times: left.extend([error] * times)
    handle.remove()


SHORTAGES = {
    "of a GPU": torch.OutOfMemoryError("CUDA out of memory."),
    "of torch on a CPU": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes."),
    "of Python": MemoryError(),
}
"""Each is met by one of the tests below at least."""


def test_a_shortage_of_memory_steps_down_once_and_says_so(start, short_of_memory) -> None:
    engine = start()
    plain = draw(engine)
    short_of_memory(SHORTAGES["of a GPU"], 1)
    steps: list[float] = []
    again = draw(engine, lambda step: steps.append(step.fraction))
    assert same(again, plain)
    assert any("offload=in_turn" in warning for warning in again.warnings)
    assert loaded(engine)["tiny-sd15"]["offload"] == "in_turn"
    assert steps == sorted(steps)
    assert draw(engine).warnings == plain.warnings


def test_each_of_a_group_hears_of_a_shortage(start, short_of_memory) -> None:
    engine = start()
    short_of_memory(SHORTAGES["of torch on a CPU"], 1)
    pair = [GenerateRequest(prompt="a cup", model="tiny-sd15", steps=1, seed=seed) for seed in (1, 2)]
    outcome = engine.run(pair)
    assert all("ran out" in part.warnings[0] for part in outcome.parts)


def test_a_batch_is_halved_after_a_shortage(start, short_of_memory) -> None:
    assert_close_after_a_shortage(start(offload="layers"), short_of_memory, "2 at a time", count=4)


def test_at_the_lowest_level_the_passes_of_one_picture_go_in_turn_after_a_shortage(start, short_of_memory) -> None:
    assert_close_after_a_shortage(start(offload="layers"), short_of_memory, "two passes in turn", width=128)


def assert_close_after_a_shortage(engine: Engine, short_of_memory, words: str, **fields) -> None:
    plain = draw(engine, **fields)
    short_of_memory(SHORTAGES["of Python"], 1)
    again = draw(engine, **fields)
    assert any(words in warning for warning in again.warnings)
    for a, b in zip(again.images, plain.images, strict=True):
        near = np.abs(np.asarray(Image.open(a.path)).astype(int) - np.asarray(Image.open(b.path)))
        assert near.max() <= 1


@pytest.mark.parametrize(("level", "times"), [("none", 2), ("layers", 2)])
def test_a_shortage_that_stays_is_an_error_that_helps_and_the_engine_goes_on(
    start, short_of_memory, level, times
) -> None:
    engine = start(offload=level)
    short_of_memory(SHORTAGES["of a GPU"], times)
    with pytest.raises(OutOfMemory, match="Lower width and height or count"):
        draw(engine)
    assert loaded(engine) == {}
    assert draw(engine).images


def test_another_error_is_not_taken_for_a_shortage(start, short_of_memory) -> None:
    engine = start()
    short_of_memory(RuntimeError("a bug\nCompile with other options."), 1)
    with pytest.raises(LayerDiffuseError, match=r"a bug$"):
        draw(engine)


def test_what_is_unloaded_is_given_back_to_the_system(start) -> None:
    engine = start(dtype="bfloat16")
    prepare(engine, "pocket")
    held = psutil.Process().memory_info().rss
    size = loaded(engine)["pocket"]["bytes"]
    engine.unload()
    assert held - psutil.Process().memory_info().rss > size / 2


def test_families_in_memory_together_keep_to_their_own_networks(start, folder) -> None:
    engine, alone = start(), {}
    for family in ("sd15", "sdxl"):
        engine.unload()
        alone[family] = draw(engine, model=f"tiny-{family}")
    for family in ("sd15", "sdxl"):
        assert same(draw(engine, model=f"tiny-{family}"), alone[family])
    assert len(loaded(engine)) == 2
