"""What becomes of a drawing when memory runs out, and of those after it."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.engine import model_manager
from layerdiffuse_mcp.engine.weights.networks import VectorUNet
from layerdiffuse_mcp.errors import LayerDiffuseError, OutOfMemory
from tests.engine.models.offloading import draw, loaded, same
from tests.saving import Engine


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


def test_what_follows_a_shortage_says_that_it_got_less_until_as_much_is_tried_again(
    start, short_of_memory, monkeypatch
) -> None:
    monkeypatch.setattr(model_manager, "CAREFUL", 2)
    engine = start()
    large = {"width": 96, "height": 96, "fit": "as_is", "steps": 1}
    short_of_memory(SHORTAGES["of Python"], 1)
    first = draw(engine, count=2, **large)
    assert "drawn again with offload=in_turn and 1 at a time" in first.warnings[0]
    smaller = draw(engine, steps=1)
    assert (smaller.warnings, loaded(engine)["tiny-sd15"]["offload"]) == ((), "none")
    for left in (1, 0):
        said = draw(engine, **large).warnings[0]
        assert said.startswith("The memory of cpu ran out at this size before: drawn with offload=in_turn")
        assert (f"the next {left}" in said) == (left > 0)
    assert not any("ran out" in warning for warning in draw(engine, count=2, **large).warnings)
    assert loaded(engine)["tiny-sd15"]["offload"] == "none"


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
