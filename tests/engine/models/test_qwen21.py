"""Qwen-Image-2.1's pipeline in our engine, with random weights: equal to diffusers' own, from words or a picture."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import QwenImage21Pipeline
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from layerdiffuse_mcp.api.outcome import Outcome
from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.api.requests import GenerateRequest, validated
from layerdiffuse_mcp.engine.models.qwen21 import asked
from layerdiffuse_mcp.engine.sampling.noise import BatchNoise
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.hub.catalog import find
from layerdiffuse_mcp.images.read import read_picture
from layerdiffuse_mcp.jobs.planner import plan
from layerdiffuse_mcp.settings import Settings
from tests.qwen21_base import CHANNELS, pipeline, write
from tests.saving import Engine

NAME, SIDE, STEPS = "small", 64, 3
APPLE = (
    "This is an RGBA image with transparency. a red apple. "
    "The image has alpha channel and the background is transparent."
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen21")
    write(folder / "models" / NAME)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "layer.png")
    Image.fromarray(pixels[..., :3]).save(folder / "photo.png")
    return folder


def engine_of(folder: Path, **settings: Any) -> Engine:
    common = {"output_dir": folder / "out", "models_dir": folder / "models", "device": "cpu"}
    return Engine(Settings(**common | settings))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    engine = engine_of(folder)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def own() -> QwenImage21Pipeline:
    """diffusers' pipeline of the same weights."""
    made = pipeline()
    made.set_progress_bar_config(disable=True)
    return made


def request(**fields: Any) -> GenerateRequest:
    wanted = {"model": NAME, "prompt": "a red apple", "width": SIDE, "height": SIDE, "fit": "as_is", "seed": 7}
    return validated(GenerateRequest, {**wanted, "steps": STEPS, "save_latent": True, **fields})


def latents_of(outcome: Outcome) -> list[Tensor]:
    return [safetensors.torch.load(file.data)["latent"] for file in outcome.encoded if file.picture is None]


def pixels_of(outcome: Outcome, folder: Path) -> np.ndarray:
    [file] = [file for file in outcome.encoded if file.picture is not None]
    (folder / "seen.png").write_bytes(file.data)
    return read_picture(folder / "seen.png").rgba


def by_hand(own: QwenImage21Pipeline, output: str, width: int = SIDE, height: int = SIDE, **more: Any) -> Any:
    """What diffusers' pipeline makes of the same noise."""
    size = height // 16, width // 16
    noise = BatchNoise([7], (1, CHANNELS, *size), "nvidia").initial()
    given = {"prompt": [APPLE], "width": width, "height": height, "num_inference_steps": STEPS, **more}
    return own(latents=own._pack_latents(noise, 1, CHANNELS, *size), output_type=output, **given).images


WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "words": ({}, {}),
    "guided": (
        {"guidance_scale": 3, "negative_prompt": "a pear"}, {"true_cfg_scale": 3, "negative_prompt": ["a pear"]},
    ),
    "guided from nothing": ({"guidance_scale": 3}, {"true_cfg_scale": 3, "negative_prompt": [" "]}),
    "wide": ({"width": 128}, {"width": 128}),
    "a layer changed": ({"image": "layer.png"}, {"image": "layer.png"}),
    "a photograph": ({"image": "photo.png"}, {"image": "photo.png"}),
    "a layer changed, guided": (
        {"image": "layer.png", "guidance_scale": 2},
        {"image": "layer.png", "true_cfg_scale": 2, "negative_prompt": [" "]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_picture_is_that_of_diffusers(engine: Engine, folder: Path, own: QwenImage21Pipeline, way: str):
    fields, theirs = ({**fields} for fields in WAYS[way])
    if "image" in fields:
        fields["image"] = folder / fields["image"]
        theirs |= {"image": Image.open(fields["image"]), "output_resolution": SIDE}
    drawn = engine.drawn(request(**fields))
    latent = by_hand(own, "latent", **theirs)[0].T.reshape(CHANNELS, SIDE // 16, -1)
    assert torch.allclose(latents_of(drawn)[0], latent, atol=1e-5)
    pixels = (by_hand(own, "np", **theirs)[0] * 255).astype(int)
    assert np.abs(pixels_of(drawn, folder) - pixels).max() <= 1


def test_a_picture_to_change_changes_what_is_drawn(engine: Engine, folder: Path):
    from_words, *edited = (
        latents_of(engine.drawn(request(**({"image": folder / name} if name else {}))))[0]
        for name in ("", "layer.png", "photo.png")
    )
    assert (from_words - edited[0]).abs().max() > 1e-3
    assert (edited[0] - edited[1]).abs().max() > 1e-3


def test_a_small_picture_is_read_as_large_as_the_processor_needs(folder: Path, own: QwenImage21Pipeline):
    """The published one enlarges what has less than 256x256 pixels, which the transformer would not know of."""
    config = folder / "models" / NAME / "processor" / "processor_config.json"
    before = config.read_text()
    config.write_text(before.replace("1024", "65536", 1))
    engine = engine_of(folder)
    try:
        for width in (64, 512):
            drawn = engine.drawn(request(image=folder / "layer.png", width=width, steps=2))
            assert latents_of(drawn)[0].shape == (CHANNELS, 4, width // 16)
    finally:
        engine.close()
        config.write_text(before)


@pytest.mark.parametrize("image", [None, "layer.png"])
def test_results_of_a_batch_are_those_drawn_alone(engine: Engine, folder: Path, image: str | None):
    given = {"image": folder / image} if image else {}
    together = latents_of(engine.drawn(request(count=2, **given)))
    [alone] = latents_of(engine.drawn(request(seed=8, **given)))
    assert torch.allclose(together[1], alone, atol=1e-5)


def test_up_to_2048_pixels_are_drawn_as_they_are_asked_for(engine: Engine):
    [task] = plan(request(width=2048, height=2048, fit=None), engine._settings).tasks
    assert isinstance(task, DrawPlan)
    assert (task.drawn, task.notes) == (None, ())


def test_no_strength_is_said_of_a_picture_that_is_read(engine: Engine, folder: Path):
    [file] = [one for one in engine.drawn(request(image=folder / "photo.png", steps=2)).encoded if one.picture]
    with Image.open(io.BytesIO(file.data)) as picture:
        assert "Steps: 2" in picture.info["parameters"]
        assert "Denoising strength" not in picture.info["parameters"]


def test_a_size_between_patches_is_drawn_larger_and_cut(engine: Engine, folder: Path):
    drawn = engine.drawn(request(width=72, height=90))
    assert pixels_of(drawn, folder).shape == (90, 72, 4)
    assert latents_of(drawn)[0].shape == (CHANNELS, 6, 6)


def test_the_steps_of_a_base_that_draws_in_few_are_its_own(folder: Path, own: QwenImage21Pipeline):
    index = write(folder / "models" / "turbo") / "model_index.json"
    sigmas = [1.0, 0.8, 0.35]
    index.write_text(json.dumps(json.loads(index.read_text()) | {"sample_sigmas": sigmas}))
    engine = engine_of(folder)
    try:
        few, more = (latents_of(engine.drawn(request(model="turbo", steps=steps)))[0] for steps in (None, 4))
    finally:
        engine.close()
    for drawn, settings in ((few, {"sigmas": sigmas}), (more, {"num_inference_steps": 4})):
        latent = by_hand(own, "latent", **settings)[0].T.reshape(CHANNELS, SIDE // 16, -1)
        assert torch.allclose(drawn, latent, atol=1e-5)


def test_a_prompt_asks_for_transparency_once():
    assert asked("a red apple") == APPLE
    assert asked(" A fox! ").count(" A fox! The image has alpha channel") == 1
    assert asked(APPLE) == APPLE


@pytest.mark.parametrize("level", ["in_turn", "layers"])
def test_a_picture_is_the_same_at_every_offload_level(engine: Engine, folder: Path, level: str):
    offloading = engine_of(folder, offload=level)
    wanted = request(image=folder / "layer.png")
    try:
        assert torch.equal(latents_of(offloading.drawn(wanted))[0], latents_of(engine.drawn(wanted))[0])
    finally:
        offloading.close()


def test_it_draws_in_the_number_format_that_a_gpu_has(folder: Path):
    engine = engine_of(folder, dtype="bfloat16", offload="in_turn")
    try:
        drawn = engine.drawn(request(image=folder / "photo.png", guidance_scale=2))
    finally:
        engine.close()
    assert drawn.dtype == "bfloat16"
    assert np.ptp(pixels_of(drawn, folder), axis=(0, 1)).min() > 0


def test_only_the_networks_of_one_phase_are_on_the_device(folder: Path):
    engine = engine_of(folder, offload="in_turn")
    wanted = request(image=folder / "layer.png")
    engine.drawn(wanted)
    components = engine._manager.get(find(NAME, engine._settings), lambda _: None).components
    names = components.checkpoint.spec.names()
    owners = {id(part): name for name in names for part in components.stack(name).module.modules()}
    seen: list[tuple[str, tuple[str, ...]]] = []

    def look(module: nn.Module, _inputs: Any) -> None:
        if (name := owners.get(id(module))) and not list(module.children()):
            here = name, tuple(other for other in names if components.stack(other).bytes)
            if here not in seen[-1:]:
                seen.append(here)

    hook = register_module_forward_pre_hook(look)
    try:
        engine.drawn(wanted)
    finally:
        hook.remove()
        engine.close()
    assert seen == [(name, (name,)) for name in ("text_encoder", "vae", "transformer", "vae")]


@pytest.mark.parametrize(
    "option",
    [{"sampler": "Euler a"}, {"stop_at": 0.5}, {"speed": "draft"}, {"layer_weight": 0.5}, {"detail": {"scale": 2}}],
)
def test_an_option_that_does_not_act_is_refused(engine: Engine, option: dict[str, Any]):
    with pytest.raises(InvalidRequest, match=f"{next(iter(option))} would change nothing: Qwen-Image-2.1 models"):
        engine.drawn(request(**option))


@pytest.mark.parametrize("option", [{"strength": 0.4}, {"mask": "layer.png"}])
def test_neither_strength_nor_mask_acts_on_a_picture_that_is_read(engine: Engine, folder: Path, option: dict[str, Any]):
    given = {name: folder / value if name == "mask" else value for name, value in option.items()}
    with pytest.raises(InvalidRequest, match=f"{next(iter(option))} would change nothing"):
        engine.drawn(request(image=folder / "layer.png", **given))


def test_one_step_has_no_schedule(engine: Engine):
    with pytest.raises(InvalidRequest, match=r"Qwen-Image-2\.1 models draw in 2 steps or more"):
        engine.drawn(request(steps=1))


def test_a_negative_prompt_that_is_not_heard_is_said(engine: Engine):
    unheard, heard = (
        engine.drawn(request(negative_prompt="a pear", guidance_scale=scale, steps=2)).warnings for scale in (1, 2)
    )
    assert any("negative prompt was not heard" in warning for warning in unheard)
    assert not any("negative prompt" in warning for warning in heard)
