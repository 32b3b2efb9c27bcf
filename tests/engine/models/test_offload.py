"""Where a model's networks are while it draws: the same pictures at every level, in the memory there is."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.requests import GenerateRequest, PrepareRequest
from layerdiffuse_mcp.engine import model_manager
from layerdiffuse_mcp.engine.device.placement import Placement
from layerdiffuse_mcp.engine.layers.attention_sharing import SharingModel, merged_numbers, shared_attention
from layerdiffuse_mcp.engine.model_manager import SHARE
from layerdiffuse_mcp.engine.models.networks import UNetNetwork
from layerdiffuse_mcp.engine.models.offload import estimated_sizes, fitting
from layerdiffuse_mcp.engine.transparency.latent_file import read_latent
from layerdiffuse_mcp.engine.types import Conditioning
from layerdiffuse_mcp.engine.weights.networks import VectorUNet
from layerdiffuse_mcp.engine.weights.patcher import LowRank, PatchStack
from layerdiffuse_mcp.errors import LayerDiffuseError, OutOfMemory
from layerdiffuse_mcp.families.memory import LEVELS, Sizes
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.families.spec import MEASURED, Task
from layerdiffuse_mcp.settings import Settings
from tests.narrow import TEXT_WIDTH, networks, write_lora, write_models
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
    [
        ("sdxl", 1024, 12, "none"),
        ("sdxl", 1024, 8, "in_turn"),
        ("sdxl", 1024, 4, "layers"),
        ("sd15", 512, 6, "none"),
        ("sd15", 512, 4, "in_turn"),
    ],
)
def test_real_models_in_half_precision_fit_into_usual_graphics_cards(family, size, gigabytes, level) -> None:
    half = Placement(torch.device("mps"), torch.float16)
    sizes = estimated_sizes(FAMILIES[family], half).drawing(size * size, size * size)
    assert fitting(sizes, int(gigabytes * 2**30 * SHARE)) == level


CARDS = [gigabytes * 2**30 * SHARE for gigabytes in (2, 4, 6, 8, 10, 12, 16, 24, 48)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("level", LEVELS)
def test_as_much_is_denoised_at_once_as_fits(family, level) -> None:
    sizes = estimated_sizes(FAMILIES[family], Placement(torch.device("mps"), torch.float16))
    counts = [sizes.pixels_at_once(level, int(budget)) for budget in CARDS]
    assert counts == sorted(counts)
    for pixels, budget in zip(counts, CARDS, strict=True):
        assert sizes.drawing(pixels + 1, 0).at(level) > budget
        assert pixels == 0 or sizes.drawing(pixels, 0).at(level) <= budget or sizes.text > budget


def test_where_pictures_are_decoded_in_float32_their_memory_is_counted_so(monkeypatch: pytest.MonkeyPatch) -> None:
    card = FAMILIES["sdxl"]

    def turing(bfloat16: bool) -> Sizes:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bfloat16)
        return estimated_sizes(card, Placement(torch.device("cuda"), torch.float16)).drawing(1, 1)

    assert turing(True).decoding == card.activations[1] // 2
    assert turing(False).decoding == card.activations[1]
    assert turing(True).denoising == turing(False).denoising == card.activations[0] // 2


def sizes_of(start: Callable[..., Engine], **fields) -> Sizes:
    """What the networks of a model take, by which a picture was drawn."""
    engine = start(offload="none")
    draw(engine, steps=1, **fields)
    [model] = engine._manager._models.values()
    return model.components.sizes


def test_a_batch_is_cut_before_a_level_is_left(start) -> None:
    pixels = 64 * 64
    budget = sizes_of(start, model="tiny-sdxl").drawing(3 * pixels, pixels).at("none") + 1000
    engine = start(max_memory=budget / GB)
    batches: list[int] = []

    def look(_: Progress) -> None:
        batches.extend(one.model.batch for one in engine._manager._models.values())

    for count in (1, 4, 1):
        assert len(draw(engine, look, model="tiny-sdxl", steps=1, count=count).images) == count
        assert loaded(engine)["tiny-sdxl"]["offload"] == "none"
    assert max(batches) == 3


def test_a_drawing_that_needs_a_lower_level_than_a_usual_one_moves_no_more_than_that_does(start, monkeypatch) -> None:
    fields = {"model": "tiny-sdxl", "width": 128, "height": 128, "fit": "as_is"}
    sizes = sizes_of(start, model="tiny-sdxl")
    budget = sizes.drawing(128 * 128, 128 * 128).at("in_turn") + 1000
    assert sizes.drawing(64 * 64, 64 * 64).at("none") < budget
    moved: list[int] = []
    weight = PatchStack.weight

    def counted(stack: PatchStack, name: str, device: Any) -> torch.Tensor:
        moved.append(stack._parameter(name).numel())
        return weight(stack, name, device)

    monkeypatch.setattr(PatchStack, "weight", counted)
    sums: list[int] = []
    for settings in ({"offload": "in_turn"}, {"max_memory": budget / GB}):
        engine = start(**settings)
        for _ in range(2):
            moved.clear()
            draw(engine, steps=1, **fields)
        assert loaded(engine)["tiny-sdxl"]["offload"] == "in_turn"
        sums.append(sum(moved))
    assert sums[0] == sums[1] > 0


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_what_attention_sharing_takes_is_counted_as_it_is(frames: int) -> None:
    unet = networks("sd15")[0]
    model = SharingModel(unet, frames, 4, control=False)
    with torch.no_grad(), shared_attention(UNetNetwork(unet), model) as shared:
        x, text = torch.zeros(frames, 4, 16, 16), torch.zeros(frames, 2, TEXT_WIDTH)
        shared(x, torch.zeros(frames), Conditioning(text, positive=torch.ones(frames, dtype=torch.bool)))
        layers = cast(Any, shared)._layers
        held = [
            one for layer in layers for one in (layer._query, layer._key_value, layer._out, *sum(layer._between, ()))
        ]
    weights = {name: weight.numel() for name, weight in unet.named_parameters()}
    biases = sum(one.numel() for one in held if one.ndim == 1)
    assert sum(one.numel() for one in held) - biases == merged_numbers(weights, frames)


def test_the_card_of_sd15_counts_its_usual_layer() -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        file = sum(weight.numel() for weight in SharingModel(unet, 1, 256, control=False).parameters())
    weights = {name: weight.numel() for name, weight in unet.named_parameters()}
    card = FAMILIES["sd15"].parameters
    assert card is not None
    assert card.layer == pytest.approx(file + merged_numbers(weights, 1), rel=0.01)


def test_a_drawing_by_attention_sharing_needs_room_for_it(start) -> None:
    scene = {"task": Task.LAYERS, "layer_prompts": {"background": "a table"}}
    without = sizes_of(start, **scene).drawing(3 * 64 * 64, 64 * 64).at("none")
    engine = start(max_memory=(without + 1000) / GB)
    draw(engine, steps=1, **scene)
    assert loaded(engine)["tiny-sd15"]["offload"] != "none"


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
