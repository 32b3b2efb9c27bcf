"""What happens in an engine that draws the third family. Run by `test_third_family.py`, with the family installed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from painted_model import NAMES, Painter, write
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.requests import DecodeRequest, EncodeRequest, GenerateRequest
from layerdiffuse_mcp.engine.sampling.noise import BatchNoise
from layerdiffuse_mcp.errors import Cancelled, ModelNotFound
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.hub.catalog import find
from layerdiffuse_mcp.images.read import levels_apart
from layerdiffuse_mcp.settings import Settings
from tests.saving import Engine

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' scheduler and this NumPy

Start = Callable[..., Engine]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painted")
    write(folder / "models" / "strokes")
    return folder


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    engines: list[Engine] = []

    def start(**settings: Any) -> Engine:
        common = {"output_dir": folder / "out", "models_dir": folder / "models", "device": "cpu"}
        engines.append(Engine(Settings(**common | settings)))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def request(**fields: Any) -> GenerateRequest:
    wanted = {"task": Task.LAYERS, "model": "strokes", "prompt": "hills", "seed": 7, "steps": 3}
    return GenerateRequest(**wanted | fields)


def pictures(outcome: Outcome, seed: int | None = None) -> list[Path]:
    return [image.path for image in outcome.images if seed in (None, image.seed)]


def model_of(engine: Engine) -> Any:
    return engine._manager.get(find("strokes", engine._settings), lambda _: None)


@pytest.mark.parametrize("source", ["nvidia", "cpu"])
def test_a_pipeline_starts_from_the_noise_of_the_seeds(start: Start, source: str):
    engine = start()
    engine.run(request(count=2, noise_source=source))
    expected = BatchNoise([7, 8], (len(NAMES), 4, 32, 32), source).initial()
    assert torch.equal(model_of(engine).pipeline.started_from, expected)


def test_a_result_is_the_same_alone_and_in_a_batch(start: Start):
    engine = start()
    together, alone = engine.run(request(count=3)), engine.run(request(seed=8))
    apart = [levels_apart(*pair) for pair in zip(pictures(together, 8), pictures(alone), strict=True)]
    assert len(apart) == len(NAMES)
    assert max(apart) <= 1


def test_two_seeds_draw_different_layers(start: Start):
    outcome = start().run(request(count=2))
    assert all(map(levels_apart, pictures(outcome, 7), pictures(outcome, 8)))


def test_in_turn_only_the_networks_of_one_phase_are_on_the_device(start: Start):
    engine = start(offload="in_turn")
    components = model_of(engine).components
    names = components.checkpoint.spec.names()
    owners = {id(part): name for name in names for part in components.stack(name).module.modules()}
    seen: list[tuple[str, tuple[str, ...]]] = []

    def look(module: nn.Module, _inputs: Any) -> None:
        if (name := owners.get(id(module))) and not list(module.children()):
            resident = tuple(other for other in names if components.stack(other).bytes)
            if (name, resident) not in seen:
                seen.append((name, resident))

    hook = register_module_forward_pre_hook(look)
    try:
        engine.run(request())
    finally:
        hook.remove()
    by_network: dict[str, list[tuple[str, ...]]] = {}
    for name, resident in seen:
        by_network.setdefault(name, []).append(resident)
    assert list(by_network) == ["words", "painter", "vae"]
    assert {name: rows[-1] for name, rows in by_network.items()} == {name: (name,) for name in by_network}


@pytest.mark.parametrize("offload", ["in_turn", "layers"])
def test_a_picture_is_the_same_at_every_offload_level(start: Start, offload: str):
    whole, offloaded = (start(offload=level).run(request()) for level in ("none", offload))
    assert not any(map(levels_apart, pictures(whole), pictures(offloaded)))


def test_by_layers_a_block_is_computed_without_the_others(start: Start):
    engine = start(offload="layers")
    stack = model_of(engine).components.stack("painter")
    block_of_three = stack.module.transformer_blocks[1]
    resident: set[int] = set()
    hook = block_of_three.register_forward_hook(lambda *_: resident.add(stack.bytes), prepend=True)
    try:
        engine.run(request())
    finally:
        hook.remove()
    every = sum(weight.numel() * weight.element_size() for weight in stack.module.parameters())
    block = sum(weight.numel() * weight.element_size() for weight in block_of_three.parameters())
    assert resident == {every - 2 * block}


def test_a_run_is_stopped_within_a_step_and_the_next_one_draws(start: Start):
    engine = start()
    before = engine.run(request())
    painter = model_of(engine).pipeline.painter
    calls = {"begun": 0, "finished": 0}

    def count(module: nn.Module, _inputs: Any) -> None:
        calls["begun"] += module is painter.transformer_blocks[0]
        calls["finished"] += module is painter.last

    hook = register_module_forward_pre_hook(count)
    try:
        with pytest.raises(Cancelled):
            engine.run(request(), cancelled=lambda: calls["begun"] == 2)
    finally:
        hook.remove()
    assert calls == {"begun": 2, "finished": 1}
    assert isinstance(painter, Painter)
    assert not any(map(levels_apart, pictures(before), pictures(engine.run(request()))))


def test_progress_rises_and_names_a_preview(start: Start):
    heard: list[Progress] = []
    start(previews=True).run(request(), heard.append)
    fractions = [step.fraction for step in heard]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    messages = [step.message for step in heard]
    assert [text.partition(",")[0] for text in messages if text.startswith("denoising")] == [
        f"denoising {step}/3" for step in (1, 2, 3)
    ]
    assert any("preview " in text for text in messages)


def test_layers_have_the_names_and_boxes_of_the_model(start: Start, tmp_path: Path):
    images = start(output_dir=tmp_path).run(request(width=72, height=64)).images
    assert [(image.role, image.name, image.box) for image in images] == [
        (None, NAMES[0], None),
        (None, NAMES[1], None),
        (None, NAMES[2], (0, 0, 36, 32)),
    ]
    assert [(image.width, image.height) for image in images] == [(72, 64), (72, 64), (36, 32)]
    assert [image.path.name.partition("-7-")[2] for image in images] == [
        "sky.png",
        "far-hills.png",
        "a-bird-plane.png",
    ]


def test_a_family_without_a_base_on_this_machine_says_where_to_put_one(tmp_path: Path):
    with pytest.raises(ModelNotFound, match="Put one into"):
        find("painted", Settings(models_dir=tmp_path))


def test_what_is_in_no_file_is_computed_when_the_network_is_made(start: Start):
    words = model_of(start()).components.network("words")
    assert words.decay.tolist() == pytest.approx([-0.1 * place for place in range(64)])


def test_an_autoencoder_of_four_channels_encodes_and_decodes_pictures(start: Start, folder: Path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (65, 70, 4), dtype=np.uint8)).save(folder / "given.png")
    engine = start()
    [latent] = engine.run(EncodeRequest(image=folder / "given.png", model="strokes")).latents
    [picture] = engine.run(DecodeRequest(latent=latent)).images
    assert (picture.width, picture.height) == (70, 65)
    assert picture.alpha is not None
