"""Qwen-Image-Layered's pipeline in our engine, with random weights: what it draws, and what diffusers does not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import QwenImageLayeredPipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage_layered import calculate_dimensions
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from layerdiffuse_mcp.api.requests import GenerateRequest, apart, validated
from layerdiffuse_mcp.api.sizes import fit
from layerdiffuse_mcp.engine.sampling.noise import BatchNoise
from layerdiffuse_mcp.families.qwen_layered import QWEN_LAYERED
from layerdiffuse_mcp.hub.catalog import find
from layerdiffuse_mcp.images.read import read_picture
from layerdiffuse_mcp.settings import Settings
from tests.layered_base import CHANNELS, pipeline, write
from tests.saving import Engine

SIDE, LATENT = 640, 80


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layered")
    write(folder / "models" / "layered")
    picture().save(folder / "poster.png")
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    engine = Engine(Settings(output_dir=folder / "out", models_dir=folder / "models", device="cpu", offload="in_turn"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def own() -> QwenImageLayeredPipeline:
    """diffusers' pipeline of the same weights."""
    made = pipeline()
    made.set_progress_bar_config(disable=True)
    return made


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    return Image.fromarray(pixels).resize((SIDE, SIDE))


def request(folder: Path, **fields: Any) -> GenerateRequest:
    wanted = {"prompt": "a fair", "layers": 2, "steps": 1, "seed": 7, "inputs": {"blended": folder / "poster.png"}}
    return validated(GenerateRequest, apart(wanted | fields))


def settings(**more: Any) -> dict[str, Any]:
    return {"negative_prompt": [" "], "layers": 2, "num_inference_steps": 1, "cfg_normalize": True, **more}


def test_layers_are_those_of_the_pipeline_of_diffusers(engine: Engine, folder: Path, own: QwenImageLayeredPipeline):
    made = engine.drawn(request(folder)).encoded
    noise = BatchNoise([7], (3, CHANNELS, LATENT, LATENT), "nvidia").initial()
    packed = own._pack_latents(noise, 1, CHANNELS, LATENT, LATENT, 3)
    [layers] = own(picture(), ["a fair"], latents=packed, output_type="np", **settings())[0]
    for file, layer in zip(made, layers, strict=True):
        (folder / file.name).write_bytes(file.data)
        pixels = read_picture(folder / file.name).rgba
        assert file.picture is not None
        left, top, right, bottom = file.picture.box or (0, 0, SIDE, SIDE)
        assert np.abs(pixels - layer[top:bottom, left:right] * 255).max() <= 1


def test_only_the_networks_of_one_phase_are_on_the_device(engine: Engine, folder: Path):
    engine.run(request(folder))
    components = engine._manager.get(find("layered", engine._settings), lambda _: None).components
    names = components.checkpoint.spec.names()
    owners = {id(part): name for name in names for part in components.stack(name).module.modules()}
    seen: dict[str, tuple[str, ...]] = {}

    def look(module: nn.Module, _inputs: Any) -> None:
        if (name := owners.get(id(module))) and not list(module.children()):
            seen[name] = tuple(other for other in names if components.stack(other).bytes)

    hook = register_module_forward_pre_hook(look)
    try:
        engine.run(request(folder))
    finally:
        hook.remove()
    assert seen == {name: (name,) for name in names}


@pytest.mark.parametrize("size", [(640, 640), (1920, 1080), (333, 1000), (4000, 500), (500, 4000), (1, 1), (47, 61)])
def test_the_planner_knows_the_size_that_the_pipeline_draws(size: tuple[int, int]):
    assert fit(size, SIDE, QWEN_LAYERED.size_step) == calculate_dimensions(SIDE**2, size[0] / size[1])


def test_diffusers_sorts_the_layers_of_a_batch_wrongly(own: QwenImageLayeredPipeline):
    """Once this fails it is mended there, and `batch_limit` may rise."""
    assert QWEN_LAYERED.batch_limit == 1
    generator = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    both = own(picture(), ["a", "b"], generator=generator, output_type="np", **settings(negative_prompt=[" "] * 2))[0]
    assert [len(layers) for layers in both] == [3, 1]


def test_diffusers_cannot_return_latents_of_layers(own: QwenImageLayeredPipeline):
    """Once this fails it is mended there, and `QwenLayered.run` is not needed."""
    with pytest.raises(UnboundLocalError):
        own(picture(), ["a"], output_type="latent", **settings())
