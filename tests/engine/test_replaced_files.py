"""A file that was replaced: what is in memory of it is read again, and recipes say that it is another."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from layerdiffuse_mcp.engine.tensorfile import TensorFile
from layerdiffuse_mcp.errors import Cancelled, CheckpointError, ModelNotFound
from layerdiffuse_mcp.hub.hashes import cache_file
from layerdiffuse_mcp.outcome import Outcome
from layerdiffuse_mcp.recipes import read_recipe, request_from
from layerdiffuse_mcp.requests import GenerateRequest, PrepareRequest, UnloadRequest
from layerdiffuse_mcp.settings import Settings
from tests.narrow import write_lora, write_models
from tests.saving import Engine, same_pixels

BASE, LAYER = "tiny-sd15.safetensors", "layer_sd15_transparent_attn.safetensors"
DECODER, LORA = "layer_sd15_vae_transparent_decoder.safetensors", "loras/spice.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_models(folder)
    write_lora(folder / LORA)
    return folder


@pytest.fixture
def models(written: Path, settings: Settings) -> Path:
    return shutil.copytree(written, settings.models_dir)


@pytest.fixture
def engine(models: Path, settings: Settings) -> Iterator[Engine]:
    engine = Engine(settings.model_copy(update={"device": "cpu"}))
    yield engine
    engine.close()


def draw(engine: Engine, **fields) -> Outcome:
    given = {"model": "tiny-sd15", "prompt": "a red apple <lora:spice:1>", "steps": 1, "seed": 5} | fields
    return engine.run(GenerateRequest(**given), lambda _: None)


def replace(path: Path) -> None:
    """Other weights of the same shapes under the same name, in a file of the same size."""
    tensors, other = load_file(path), path.with_name("other")
    with TensorFile(path)._open as file:
        metadata = file.metadata()
    torch.manual_seed(3)
    save_file(
        {k: t + 0.3 * torch.randn(t.shape).to(t) if t.is_floating_point() else t for k, t in tensors.items()},
        other,
        metadata,
    )
    other.replace(path)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        *((name, "tiny-sd15") for name in (BASE, LAYER, DECODER, LORA)),
        ("layer_xl_transparent_attn.safetensors", "tiny-sdxl"),
    ],
)
def test_a_replaced_file_is_read_again(engine: Engine, models: Path, name: str, model: str) -> None:
    before = draw(engine, model=model)
    assert same_pixels(before.images[0].path, draw(engine, model=model).images[0].path)
    replace(models / name)
    after = draw(engine, model=model)
    assert not same_pixels(before.images[0].path, after.images[0].path)
    key = "model" if name == BASE else Path(name).name
    hashes = [{"model": o.recipe["model_hash"], **o.recipe["weights"]} for o in (before, after)]
    assert {name for name in hashes[0] if hashes[0][name] != hashes[1][name]} == {key}
    warned = engine.run(request_from(before.images[0].path), lambda _: None).warnings
    what = "The base model" if name == BASE else key
    assert [text for text in warned if f"{what} is another file than the recipe's" in text]
    assert not any("recipe" in text for text in engine.run(request_from(after.images[0].path), lambda _: None).warnings)


def test_a_recipe_without_a_hash_says_that_nothing_was_checked(engine: Engine) -> None:
    recipe = read_recipe(draw(engine).images[0].path)
    unchecked = {**recipe, "model_hash": None}
    warned = engine.run(request_from(unchecked), lambda _: None).warnings
    assert "The base model was not checked to be the recipe's: the recipe holds no hash of it." in warned
    other = engine.run(request_from({**unchecked}, {"model": "pocket", "prompt": "a red apple"}), lambda _: None)
    assert not any("base model" in text for text in other.warnings)


def test_a_job_cancelled_while_a_checksum_is_waited_for_leaves_nothing(
    engine: Engine, models: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from layerdiffuse_mcp.hub import hashes

    beats: list[str] = []
    held = hashes.threading.Event()
    plain = hashes.file_sha256
    monkeypatch.setattr(hashes, "file_sha256", lambda path, beat: (held.wait(60), plain(path, beat))[1])

    def stop(step) -> None:
        if "for its checksum" in step.message:
            beats.append(step.message)
            raise Cancelled("The job was cancelled.")

    with pytest.raises(Cancelled):
        engine.run(GenerateRequest(prompt="x", model="tiny-sd15", steps=1), stop)
    assert "reading tiny-sd15.safetensors for its checksum, once: 0 kB of" in beats[0]
    assert not list(settings.output.rglob("*.png"))
    held.set()
    assert draw(engine).images
    assert cache_file().exists()


def test_weights_of_a_file_that_is_replaced_in_use_are_not_mixed(models: Path) -> None:
    file = TensorFile(models / BASE)
    key = next(iter(file))
    assert file.read(key).shape == file.shapes[key]
    replace(models / BASE)
    with pytest.raises(CheckpointError, match="was replaced while it is in use"):
        file.read(key)


@pytest.mark.parametrize("name", ["tiny-sd15", "TINY-sd15", "tiny-sd15.safetensors"])
def test_a_model_is_unloaded_by_any_of_its_names(engine: Engine, name: str) -> None:
    draw(engine)
    outcome = engine.run(UnloadRequest(model=name), lambda _: None)
    assert (outcome.status["unloaded"], outcome.status["loaded"], outcome.warnings) == (["tiny-sd15"], [], ())
    again = engine.run(UnloadRequest(model=name), lambda _: None)
    assert again.warnings == (f"Nothing was unloaded: {name} was not in memory.",)
    assert engine.run(UnloadRequest(), lambda _: None).warnings == ("Nothing was unloaded: no model was in memory.",)


def test_an_unknown_model_to_unload_is_told(engine: Engine) -> None:
    with pytest.raises(ModelNotFound, match="no model 'poket'"):
        engine.run(UnloadRequest(model="poket"), lambda _: None)


def test_a_model_whose_file_has_gone_can_still_be_unloaded(engine: Engine, models: Path) -> None:
    draw(engine)
    os.unlink(models / BASE)
    assert engine.run(UnloadRequest(model="tiny-sd15"), lambda _: None).status["unloaded"] == ["tiny-sd15"]


def test_preparing_a_lora_that_is_here_loads_no_model(engine: Engine) -> None:
    outcome = engine.run(PrepareRequest(model="spice"), lambda _: None)
    assert outcome.model == "spice"
