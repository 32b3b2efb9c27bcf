"""Where a model's networks are while it draws: the same pictures at every level, in the memory there is."""

from collections.abc import Callable
from typing import Any, cast

import psutil
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from layerdiffuse_mcp.api.outcome import Progress
from layerdiffuse_mcp.engine.device.placement import Placement
from layerdiffuse_mcp.engine.layers.attention_sharing import SharingModel, merged_numbers, shared_attention
from layerdiffuse_mcp.engine.model_manager import SHARE
from layerdiffuse_mcp.engine.models.networks import UNetNetwork
from layerdiffuse_mcp.engine.models.offload import estimated_sizes, fitting
from layerdiffuse_mcp.engine.types import Conditioning
from layerdiffuse_mcp.engine.weights.patcher import LowRank, PatchStack
from layerdiffuse_mcp.errors import OutOfMemory
from layerdiffuse_mcp.families.memory import LEVELS, Sizes
from layerdiffuse_mcp.families.registry import FAMILIES
from layerdiffuse_mcp.families.spec import MEASURED, Task
from tests.engine.models.offloading import draw, loaded, prepare, same
from tests.narrow import TEXT_WIDTH, networks
from tests.saving import Engine

GB = 1e9


DRAWN = {
    "sd15": {"task": Task.LAYERS, "layer_prompts": {"background": "a table"}},
    "sdxl": {"task": Task.BACKGROUND_FROM_FOREGROUND},
}


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
