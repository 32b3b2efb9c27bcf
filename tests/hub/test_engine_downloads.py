"""The engine and the command line fetch what they may: narrow models from the hub double, for real."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from layerdiffuse_mcp.api.outcome import Progress
from layerdiffuse_mcp.api.requests import GenerateRequest, PrepareRequest
from layerdiffuse_mcp.errors import InvalidRequest, ModelNotFound
from layerdiffuse_mcp.families.registry import LAYER_FILES
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.settings import Settings
from tests import narrow
from tests.hub.double import Hub, Slow
from tests.hub.files import LORA_KEYS, tensors, write
from tests.saving import Engine

NAME = "realisticVisionV51_v51VAE"
FILES = ("joint", "vae_transparent_encoder", "vae_transparent_decoder")


@pytest.fixture(scope="module")
def narrow_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("narrow")
    narrow.write_models(folder, ("sd15",))
    return folder


@pytest.fixture
def filled(hub: Hub, narrow_files: Path) -> Hub:
    """A hub that has a narrow base and its layer files under the published names."""
    hub.add("lllyasviel/fav_models", f"fav/{NAME}.safetensors", (narrow_files / "tiny-sd15.safetensors").read_bytes())
    for file in (LAYER_FILES[f"layer_sd15_{name}.safetensors"] for name in FILES):
        hub.add(file.repo, file.path, (narrow_files / file.name).read_bytes())
    return hub


def drawing(**fields: object) -> GenerateRequest:
    small = {"width": 64, "height": 64, "fit": "as_is", "steps": 1}
    return GenerateRequest(prompt="x", task=Task.LAYERS, model="sd15", seed=1, **small, **fields)


def test_preparing_a_model_fetches_and_loads_it(filled: Hub, settings: Settings):
    engine = Engine(settings)
    steps: list[Progress] = []
    outcome = engine.run(PrepareRequest(model="sd15", task=Task.LAYERS), steps.append)
    assert outcome.model == "realistic-vision-v51"
    assert any("downloading" in step.message for step in steps)
    assert any("loading" in step.message for step in steps)
    filled.requests.clear()
    images = engine.run(drawing(), lambda _: None).images
    engine.close()
    assert [image.role for image in images] == ["foreground", "background", "blended"]
    assert not filled.requests


def test_a_generation_downloads_nothing_unless_it_may(filled: Hub, settings: Settings):
    engine = Engine(settings)
    with pytest.raises(ModelNotFound, match=r"models prepare realistic-vision-v51 --task layers.* GB"):
        engine.run(drawing(), lambda _: None)
    assert not filled.requests


def test_a_generation_that_may_download_does(filled: Hub, settings: Settings):
    engine = Engine(settings.model_copy(update={"auto_download": True}))
    outcome = engine.run(drawing())
    engine.close()
    assert len(outcome.images) == 3
    assert filled.requests


def test_what_the_embedded_model_cannot_do_is_not_prepared(hub: Hub, settings: Settings):
    with pytest.raises(InvalidRequest, match="Name a model of the family sdxl"):
        Engine(settings).run(PrepareRequest(model="pocket", task=Task.EXTRACT_FOREGROUND), lambda _: None)


@pytest.fixture
def command(filled: Hub, settings: Settings, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts `layerdiffuse-mcp models prepare ...` in a process of its own, turned to the hub by its environment."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "LAYERDIFFUSE_"))},
        "HF_ENDPOINT": filled.url,
        "HF_HOME": str(tmp_path / "home"),
        "LAYERDIFFUSE_MODELS_DIR": str(settings.models_dir),
        "COLUMNS": "200",
    }

    def start(*arguments: str, **more: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "layerdiffuse_mcp", "models", "prepare", *arguments]
        return subprocess.Popen(
            line, env={**environment, **more}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )

    return start


def test_the_command_goes_on_where_a_killed_one_stopped(
    filled: Hub, command: Callable[..., subprocess.Popen[str]], tmp_path: Path
):
    filled.faults.append(Slow(20_000, 0.02))
    first = command("sd15", "--task", "layers")
    while not any(part.stat().st_size for part in (tmp_path / "home").rglob("*.part")):
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.02)
    first.kill()
    first.communicate()
    second = command("sd15", "--task", "layers")
    out, err = second.communicate()
    assert second.returncode == 0, err
    ranges = [asked.range for asked in filled.asked("store")]
    assert ranges[1] is not None
    assert ranges[2:] == [None, None, None]
    assert out.count("fetched ") == 4
    assert f"fetched {NAME}.safetensors" in out
    assert "realistic-vision-v51 is ready" in out


def test_the_command_takes_token_and_offline_mode_from_the_environment(
    filled: Hub, command: Callable[..., subprocess.Popen[str]]
):
    offline = command("sd15", HF_HUB_OFFLINE="1")
    refused = command("sd15", "--task", "layers", HF_TOKEN="hf_expired")
    assert "HF_HUB_OFFLINE forbids it" in offline.communicate()[1]
    assert offline.returncode == 1
    assert "does not accept your token" in refused.communicate()[1]
    assert {asked.token for asked in filled.requests if "/resolve/" in asked.path} == {"hf_expired"}


def test_two_commands_at_once_fetch_each_file_once(filled: Hub, command: Callable[..., subprocess.Popen[str]]):
    filled.faults += [Slow(20_000, 0.02)]
    both = [command("sd15", "--task", "layers") for _ in range(2)]
    for one in both:
        _, err = one.communicate()
        assert one.returncode == 0, err
    assert [asked.range for asked in filled.asked("store")] == [None] * 4


def test_a_lora_is_fetched_by_what_its_absence_advises(hub: Hub, settings: Settings):
    hub.add("me/mine", "wc.safetensors", tensors(LORA_KEYS))
    write(
        settings.models_dir / "models.toml",
        b'[[lora]]\nname = "watercolour"\nrepo = "me/mine"\nfile = "wc.safetensors"\n',
    )
    with pytest.raises(ModelNotFound, match=r"prepare_model with model='watercolour'"):
        catalog.lora("watercolour", settings)
    engine = Engine(settings)
    assert engine.run(PrepareRequest(model="Watercolour"), lambda _: None).model == "watercolour"
    assert catalog.lora("watercolour", settings).read_bytes() == tensors(LORA_KEYS)
    assert engine.run(PrepareRequest(model="watercolour"), lambda _: None).model == "watercolour"
    engine.close()
