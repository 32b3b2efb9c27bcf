"""Requests in, pictures on disk out: every task, on narrow models in the official file formats."""

import gc
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.requests import (
    DecodeRequest,
    EncodeRequest,
    GenerateRequest,
    PrepareRequest,
)
from layerdiffuse_mcp.engine.text.clip import TextEncoder
from layerdiffuse_mcp.engine.transparency.latent_file import read_latent
from layerdiffuse_mcp.errors import Cancelled, ImageError, InvalidRequest, LayerDiffuseError, ModelNotFound
from layerdiffuse_mcp.families.registry import FAMILIES, METHODS, ROUTES, task_inputs
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.images.png import read_parameters, read_recipe
from layerdiffuse_mcp.recipes.recipe import request_from
from tests.narrow import TEXT_WIDTH, write_lora
from tests.saving import Engine, same_pixels

pytestmark = pytest.mark.usefixtures("two_threads")


def draw(engine: Engine, **fields) -> Outcome:
    given = {"model": "tiny-sd15", "prompt": "a red apple", "steps": 2, "seed": 5} | fields
    return engine.run(GenerateRequest(**given), lambda _: None)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def files(folder: Path) -> set[Path]:
    return set((folder / "out").rglob("*"))


def held() -> int:
    """Bytes of all pictures, latents and embeddings that are alive; weights, which are parameters, are not counted."""
    gc.collect()
    alive = gc.get_objects()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive if type(t) is torch.Tensor}
    return sum(storages.values()) + sum(array.nbytes for array in alive if type(array) is np.ndarray)


def test_a_further_job_keeps_nothing_in_memory(engine: Engine) -> None:
    kept: list[int] = []
    for seed in range(3):
        draw(engine, seed=seed, steps=1)
        kept.append(held())
    assert kept[0] == kept[1] == kept[2]


SAMPLED = [(task, family) for task, family in ROUTES if FAMILIES[family].drawer == "sampled"]
"""What our own pipeline draws; the tests of pipelines have their own."""


@pytest.mark.parametrize(("task", "family"), SAMPLED, ids=lambda value: str(value))
def test_every_task_draws_its_layers(engine, folder, task, family) -> None:
    inputs = {role: folder / "given.png" for role in task_inputs(task, family)}
    outcome = draw(engine, task=task, model=f"tiny-{family}", inputs=inputs, width=64, height=64)
    drawn = [role for method in ROUTES[task, family] for role in METHODS[method].outputs]
    assert [image.role for image in outcome.images] == drawn
    for image in outcome.images:
        transparent = any(METHODS[method].transparent == image.role for method in ROUTES[task, family])
        assert pixels(image.path).shape == (64, 64, 4 if transparent else 3)
        assert (image.alpha is not None) == transparent


def test_the_convolution_method_can_be_chosen(engine) -> None:
    outcome = draw(engine, model="tiny-sdxl", method="layer_xl_transparent_conv")
    assert outcome.recipe["request"]["stages"][0]["method"] == "layer_xl_transparent_conv"


def test_a_seed_draws_the_same_picture_alone_and_in_a_batch(engine) -> None:
    pair = draw(engine, count=2).images
    alone = draw(engine, seed=pair[1].seed).images[0]
    assert [image.seed for image in pair] == [5, 6]
    assert np.abs(pixels(pair[1].path).astype(int) - pixels(alone.path)).max() <= 1
    assert not same_pixels(pair[0].path, pair[1].path)


def test_a_joint_result_takes_a_seed_for_each_of_its_frames(engine) -> None:
    pair = draw(engine, task=Task.LAYERS, count=2).images
    assert [image.seed for image in pair] == [5, 5, 5, 8, 8, 8]
    assert len({pixels(image.path).tobytes() for image in pair}) == 6


def test_a_layers_own_prompt_changes_the_layers(engine) -> None:
    plain = draw(engine, task=Task.LAYERS)
    own = draw(engine, task=Task.LAYERS, layer_prompts={"background": "a wooden table"})
    assert not same_pixels(plain.images[1].path, own.images[1].path)


def test_a_picture_is_drawn_again_from_the_recipe_inside_it(engine, folder) -> None:
    first = draw(
        engine, model="tiny-sdxl", task=Task.BACKGROUND_FROM_FOREGROUND, inputs={"foreground": folder / "given.png"}
    )
    for image in first.images:
        assert read_recipe(image.path)["pictures"]["foreground"]["name"] == "given.png"
        assert str(folder) not in str(read_recipe(image.path))
        again = engine.run(request_from(image.path, find=lambda wanted: folder / wanted.name), lambda _: None)
        assert any(same_pixels(image.path, other.path) for other in again.images)


def test_a_recipe_can_be_changed(engine) -> None:
    path = draw(engine).images[0].path
    changed = request_from(path, {"seed": 9, "steps": 3})
    assert (changed.seed, changed.stages[0].steps, changed.prompt) == (9, 3, "a red apple")
    assert not same_pixels(path, engine.run(changed, lambda _: None).images[0].path)


def test_what_was_decided_before_a_request_is_said_in_its_warnings(engine) -> None:
    assert "The prompts were dropped." in draw(engine, notes=("The prompts were dropped.",), steps=1).warnings


def test_the_engine_hands_over_its_files_and_writes_none(engine, folder) -> None:
    before = files(folder)
    outcome = engine.drawn(GenerateRequest(prompt="x", model="tiny-sd15", steps=1, save_latent=True))
    assert [file.name.rpartition(".")[2] for file in outcome.encoded] == ["png", "safetensors"]
    assert (outcome.images, outcome.latents, files(folder)) == ((), (), before)


def test_a_picture_carries_the_parameter_line_of_other_tools(engine) -> None:
    text = read_parameters(draw(engine).images[0].path)
    assert text.startswith("a red apple\nSteps: 2, Sampler: DPM++ 2M")
    assert "layerdiffusion_method: (SD1.5) Only Generate Transparent Image (Attention Injection)" in text


def test_a_saved_latent_decodes_to_the_same_picture(engine) -> None:
    outcome = draw(engine, save_latent=True, width=100, height=72, fit="as_is")
    decoded = engine.run(DecodeRequest(latent=outcome.latents[0]), lambda _: None)
    assert same_pixels(outcome.images[0].path, decoded.images[0].path)


def test_an_encoded_picture_is_a_latent_that_can_be_decoded(engine, folder) -> None:
    encoded = engine.run(EncodeRequest(image=folder / "given.png", model="tiny-sd15"), lambda _: None)
    decoded = engine.run(DecodeRequest(latent=encoded.latents[0]), lambda _: None)
    assert pixels(decoded.images[0].path).shape == (72, 56, 4)


def test_any_size_is_drawn(engine) -> None:
    image = draw(engine, width=77, height=131, fit="as_is").images[0]
    assert pixels(image.path).shape == (image.height, image.width, 4) == (131, 77, 4)


def test_the_shape_of_a_given_picture_is_kept_by_default(engine, folder) -> None:
    Image.new("RGBA", (400, 100)).save(folder / "wide.png")
    image = draw(engine, image=folder / "wide.png").images[0]
    assert image.width == 2 * image.height


def test_an_edit_changes_more_with_more_strength(engine, folder) -> None:
    Image.new("RGBA", (64, 64), (200, 30, 30, 250)).save(folder / "red.png")
    encoded = engine.run(EncodeRequest(image=folder / "red.png", model="tiny-sd15"), lambda _: None)
    latent = read_latent(encoded.latents[0]).latent
    changed = []
    for strength in (0.1, 0.9):
        edited = draw(engine, image=folder / "red.png", strength=strength, steps=10, save_latent=True)
        changed.append((read_latent(edited.latents[0]).latent - latent).norm())
    assert changed[0] < changed[1]


def test_outside_the_mask_not_a_pixel_changes(engine, folder) -> None:
    rng = np.random.default_rng(1)
    original = rng.integers(0, 256, (64, 64, 4), dtype=np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 255
    Image.fromarray(original).save(folder / "square.png")
    Image.fromarray(mask).save(folder / "mask.png")
    edited = draw(engine, image=folder / "square.png", mask=folder / "mask.png", strength=0.9, width=64, height=64)
    result = pixels(edited.images[0].path)
    assert np.array_equal(result[32:], original[32:])
    assert not np.array_equal(result[:32], original[:32])


@pytest.mark.parametrize("colour", [(0, 0, 0, 255), (255, 255, 255, 0)], ids=["black", "transparent"])
def test_a_mask_by_which_nothing_would_happen_is_refused(engine, folder, colour) -> None:
    Image.new("RGBA", (64, 64), colour).save(folder / "nothing.png")
    Image.new("RGBA", (64, 64), (255, 0, 0, 128)).save(folder / "soft.png")
    with pytest.raises(ImageError, match="mask picture is black or transparent everywhere"):
        draw(engine, image=folder / "soft.png", mask=folder / "nothing.png", strength=0.9)


def test_below_stop_at_the_layer_file_no_longer_acts(engine) -> None:
    whole, half, none = (draw(engine, steps=6, stop_at=share).images[0].path for share in (1.0, 0.5, 0.0))
    assert len({pixels(path).tobytes() for path in (whole, half, none)}) == 3


def test_the_layer_weight_acts_on_sdxl(engine) -> None:
    full, less = (draw(engine, model="tiny-sdxl", layer_weight=weight).images[0].path for weight in (1.0, 0.2))
    assert not same_pixels(full, less)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_lora_named_in_the_prompt_acts_and_goes_without_a_trace(engine, folder, family) -> None:
    write_lora(folder / "models" / "loras" / f"spice-{family}.safetensors")
    prompts = ("a red apple", f"a red apple <lora:spice-{family}:0.8>", "a red apple")
    drawn = [draw(engine, model=f"tiny-{family}", prompt=prompt, save_latent=True) for prompt in prompts]
    plain, spiced, again = (read_latent(outcome.latents[0]).latent for outcome in drawn)
    assert not plain.equal(spiced)
    assert plain.equal(again)
    assert "<lora:" in drawn[1].recipe["request"]["prompt"]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_textual_inversion_acts_where_its_name_is_and_its_file_is_in_the_recipe(engine, folder, family) -> None:
    path = folder / "models" / "embeddings" / f"charm {family}.safetensors"
    path.parent.mkdir(exist_ok=True)
    keys = ("emb_params",) if family == "sd15" else ("clip_l", "clip_g")
    save_file({key: torch.full((2, TEXT_WIDTH), 3.0) for key in keys}, path)
    prompts = ("a red apple", f"a red apple, charm {family}", "a red apple")
    drawn = [draw(engine, model=f"tiny-{family}", prompt=prompt, save_latent=True) for prompt in prompts]
    plain, charmed, again = (read_latent(outcome.latents[0]).latent for outcome in drawn)
    assert not plain.equal(charmed)
    assert plain.equal(again)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    held = [outcome.recipe["weights"].get(path.name) for outcome in drawn]
    assert held[0] is held[2] is None
    assert digest.startswith(held[1])


def test_two_names_of_one_textual_inversion_act_alike(engine, folder) -> None:
    path = folder / "models" / "embeddings" / "zebrax.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file({"emb_params": torch.full((2, TEXT_WIDTH), 3.0)}, path)
    path.with_stem("quaggax").symlink_to(path.name)
    names = ("zebrax", "quaggax", "donkeyx")
    first, second, unknown = (
        read_latent(draw(engine, model="tiny-sd15", prompt=f"a {name}", save_latent=True).latents[0]).latent
        for name in names
    )
    assert first.equal(second)
    assert not first.equal(unknown)


def test_a_lora_that_is_not_there_is_named_with_those_that_are(engine, folder) -> None:
    write_lora(folder / "models" / "loras" / "watercolour.safetensors")
    with pytest.raises(ModelNotFound, match="watercolour"):
        draw(engine, prompt="a cup <lora:watercolor:1>")


def test_a_prompt_is_encoded_once(engine) -> None:
    encoded = []
    count = nn.modules.module.register_module_forward_hook(
        lambda module, *_: encoded.append(module) if isinstance(module, TextEncoder) else None
    )
    with count:
        for seed in (1, 2):
            draw(engine, prompt="a prompt of this test alone", negative_prompt="and its opposite", seed=seed)
    assert len(encoded) == 2


def test_progress_never_falls_and_ends_full(engine) -> None:
    steps: list[Progress] = []
    engine.run(GenerateRequest(prompt="x", model="tiny-sd15", steps=3, seed=1, count=2), steps.append)
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] > 0.9
    assert any(step.message.startswith("denoising 3/3") for step in steps)


def test_a_cancelled_run_leaves_no_file_and_a_ready_engine(engine, folder) -> None:
    before = files(folder)

    def stop(step: Progress) -> None:
        if "denoising" in step.message:
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        engine.run(GenerateRequest(prompt="x", model="tiny-sdxl"), stop)
    assert files(folder) == before
    assert draw(engine).images


def test_models_stay_until_they_are_unloaded(engine) -> None:
    draw(engine)
    loaded = engine.status()["loaded"]
    assert "tiny-sd15" in [model["model"] for model in loaded]
    assert all(model["bytes"] > 0 for model in loaded)
    assert "tiny-sd15" in engine.unload()
    assert engine.status()["loaded"] == []


def test_what_an_engine_reports_is_read_without_importing_torch(engine) -> None:
    assert b"torch." not in pickle.dumps((draw(engine), engine.status()))


def test_a_prepared_model_is_warm(engine) -> None:
    engine.run(PrepareRequest(model="tiny-sd15"), lambda _: None)
    messages: list[str] = []
    engine.run(GenerateRequest(prompt="x", model="tiny-sd15", steps=1), lambda step: messages.append(step.message))
    assert not any(message.startswith("loading") for message in messages)


WRONG = {
    "unknown model": ({"model": "tiny-sd16"}, ModelNotFound, "tiny-sd15"),
    "task of another family": ({"task": Task.LAYERS, "model": "tiny-sdxl"}, ModelNotFound, "tiny-sd15"),
    "method of another family": ({"method": "layer_xl_transparent_conv"}, InvalidRequest, "sdxl"),
    "picture missing": ({"task": Task.BACKGROUND_FROM_FOREGROUND}, InvalidRequest, "foreground"),
    "picture not wanted": ({"inputs": {"foreground": Path(__file__)}}, ImageError, "not a picture"),
    "clip skip too deep": ({"clip_skip": 12}, InvalidRequest, "layers"),
    "a prompt of 4097 tokens": ({"prompt": "cup " * 4097}, InvalidRequest, "4097 tokens; at most 4096"),
    "a base that is not here": ({"model": "juggernaut-xl-v6"}, ModelNotFound, "hub repository"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_done_says_why_and_leaves_nothing(engine, folder, case) -> None:
    fields, kind, hint = WRONG[case]
    before = files(folder)
    with pytest.raises(kind, match=hint):
        draw(engine, **fields)
    assert files(folder) == before


def test_a_latent_file_that_is_a_picture_is_refused(engine, folder) -> None:
    with pytest.raises(ImageError, match="latent"):
        engine.run(DecodeRequest(latent=folder / "given.png", model="tiny-sd15"), lambda _: None)


def test_a_missing_layer_file_is_named_with_its_size(engine, folder) -> None:
    path = folder / "models" / "layer_sd15_joint.safetensors"
    hidden = path.rename(folder / "hidden")
    try:
        with pytest.raises(ModelNotFound, match=r"layer_sd15_joint.safetensors .*554 MB"):
            draw(engine, task=Task.LAYERS)
    finally:
        hidden.rename(path)


def test_a_damaged_layer_file_leaves_the_base_usable(engine, folder) -> None:
    good = pixels(draw(engine, model="tiny-sdxl").images[0].path)
    path = folder / "models" / "layer_xl_transparent_conv.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    try:
        with pytest.raises(LayerDiffuseError, match="cut short"):
            draw(engine, model="tiny-sdxl", method="layer_xl_transparent_conv")
    finally:
        path.write_bytes(whole)
    assert np.array_equal(pixels(draw(engine, model="tiny-sdxl").images[0].path), good)


def test_licences_stand_in_the_outcome_and_in_the_picture(engine: Engine) -> None:
    outcome = draw(engine, steps=1)
    base, *others = outcome.licences.items()
    assert base == ("model", "unknown")  # of a base of one's own
    assert {licence for _, licence in others} == {"creativeml-openrail-m"}
    assert "layer_sd15_transparent_attn.safetensors" in outcome.licences
    assert read_recipe(outcome.images[0].path)["licences"] == outcome.licences


def test_a_picture_names_the_files_it_was_drawn_with_and_none_of_an_earlier_one(engine, folder) -> None:
    decoder = "layer_sd15_vae_transparent_decoder.safetensors"
    encoder = decoder.replace("decoder", "encoder")
    edited = draw(engine, image=folder / "given.png", strength=0.5)
    drawn = draw(engine)
    used = [set(outcome.recipe["weights"]) for outcome in (edited, drawn)]
    assert used[0] - used[1] == {encoder}
    assert decoder in used[1]
