"""Few steps: a wish for speed is a LoRA with its advice, chosen among what is prepared and said in the recipe."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from layerdiffuse_mcp.api.plan import Download, DrawPlan
from layerdiffuse_mcp.api.requests import GenerateRequest, validated
from layerdiffuse_mcp.engine.weights.patcher import PatchStack
from layerdiffuse_mcp.errors import InvalidRequest, ModelNotFound
from layerdiffuse_mcp.families.entries import LoraEntry
from layerdiffuse_mcp.families.registry import FAMILIES, LORAS
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.hub.download import prepare
from layerdiffuse_mcp.images.read import levels_apart
from layerdiffuse_mcp.jobs.planner import plan
from layerdiffuse_mcp.recipes.recipe import read_recipe, request_from
from layerdiffuse_mcp.settings import Settings
from tests.hub.double import Hub
from tests.hub.files import LORA_KEYS, tensors, write
from tests.narrow import write_models
from tests.saving import Engine

LCM, HYPER = "lcm-lora-sdv1-5", "hyper-sd15-8steps-cfg"
LIGHTNING = "sdxl_lightning_4step_lora.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("narrow")
    write_models(folder)
    return folder


@pytest.fixture
def narrow(models: Path, settings: Settings) -> Settings:
    """Settings with the narrow models; files of the user's go into a folder of the test's own."""
    settings.models_dir.mkdir(parents=True, exist_ok=True)
    for path in models.iterdir():
        (settings.models_dir / path.name).symlink_to(path)
    return settings.model_copy(update={"device": "cpu"})


def planned(settings: Settings, **fields: Any) -> DrawPlan:
    [task] = plan(validated(GenerateRequest, {"prompt": "a cup", "model": "tiny-sd15", **fields}), settings).tasks
    assert isinstance(task, DrawPlan)
    return task


def row(name: str) -> LoraEntry:
    [lora] = [lora for lora in LORAS if lora.name == name]
    return lora


def settings_of(task: DrawPlan) -> tuple[str, str, int, float]:
    [stage] = task.stages
    return stage.sampler, stage.schedule, stage.steps, stage.guidance_scale


@pytest.mark.parametrize("lora", LORAS, ids=lambda lora: lora.name)
def test_each_row_says_licence_size_and_how_to_draw_with_it(lora: LoraEntry) -> None:
    assert lora.family in FAMILIES
    assert lora.speed in ("draft", "normal")
    assert lora.licence
    assert lora.remote is not None
    assert lora.remote.commercial
    assert lora.remote.bytes
    assert {"sampler", "schedule", "steps", "guidance_scale"} == lora.advice.keys()


def test_what_is_prepared_is_chosen_and_its_advice_lies_between_the_bases_and_the_requests(
    hub: Hub, narrow: Settings
) -> None:
    with pytest.raises(ModelNotFound, match=rf"prepare_model with model='{LCM}' \(135 MB .*licence openrail\+\+\)"):
        planned(narrow, speed="draft")
    hub.add("latent-consistency/lcm-lora-sdv1-5", "pytorch_lora_weights.safetensors", tensors(LORA_KEYS))
    prepare(LCM, narrow, lambda _: None)
    made = planned(narrow, speed="draft")
    assert settings_of(made) == ("LCM", "SGM Uniform", 4, 1.0)
    assert [(lora.name, lora.strength) for lora in made.loras] == [(LCM, 1.0)]
    assert settings_of(planned(narrow, speed="draft", steps=6, sampler="Euler")) == ("Euler", "Automatic", 6, 1.0)
    plain = planned(narrow)
    assert planned(narrow, speed="fine").model_copy(update={"seed": plain.seed}) == plain
    with pytest.raises(ModelNotFound, match=f"as {HYPER}.safetensors. Or leave speed or the LoRA out"):
        planned(narrow, speed="normal")


def test_one_that_is_not_here_is_fetched_where_the_settings_allow_it(narrow: Settings) -> None:
    fetching = narrow.model_copy(update={"auto_download": True})
    request = validated(GenerateRequest, {"prompt": "x", "model": "tiny-sd15", "speed": "normal"})
    assert plan(request, fetching).downloads == (Download(model=HYPER),)


@pytest.mark.parametrize("folder", ["", "loras"])
def test_a_file_of_the_published_name_in_the_models_folder_is_that_lora(narrow: Settings, folder: str) -> None:
    write(narrow.models_dir / folder / LIGHTNING, tensors(LORA_KEYS))
    write(narrow.models_dir / "loras" / f"{LCM}.safetensors", tensors(LORA_KEYS))  # as people call it
    assert {lora.name for lora in catalog.loras(narrow) if lora.path} == {"sdxl-lightning-4step", LCM}
    made = planned(narrow, model="tiny-sdxl", speed="draft", prompt="a cup <lora:sdxl-lightning-4step:0.7>")
    assert settings_of(made) == ("Euler", "SGM Uniform", 4, 1.0)
    assert [(lora.name, lora.strength) for lora in made.loras] == [("sdxl-lightning-4step", 0.7)]


def test_a_base_that_none_fits_is_told_so(narrow: Settings) -> None:
    with pytest.raises(InvalidRequest, match="no few-step LoRA is known that fits the model pocket"):
        planned(narrow, model="pocket", speed="draft")
    with pytest.raises(InvalidRequest, match="speed"):
        planned(narrow, speed="slow")


@pytest.mark.parametrize("speed", ["normal", "fine"])
def test_two_wishes_for_speed_at_once_are_refused(narrow: Settings, speed: str) -> None:
    with pytest.raises(InvalidRequest, match=f"names the few-step LoRA {LCM}.*Leave the speed or the LoRA out"):
        planned(narrow, prompt=f"a cup <lora:{LCM}:1>", speed=speed)


@pytest.fixture
def engine(narrow: Settings) -> Iterator[Engine]:
    engine = Engine(narrow)
    yield engine
    engine.close()


def write_official(path: Path, unet: nn.Module) -> None:
    """Rank 8 and alpha for every linear layer and convolution, by diffusers' names in kohya's spelling."""
    torch.manual_seed(0)
    content: dict[str, torch.Tensor] = {}
    for name, module in unet.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d) or "conv_in" in name or "conv_out" in name:
            continue
        key, weight = "lora_unet_" + name.replace(".", "_"), module.weight
        kernel = weight.shape[2:]
        ones = (1,) * len(kernel)
        content[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], 8, *ones) * 0.02
        content[f"{key}.lora_down.weight"] = torch.randn(8, weight.shape[1], *kernel) * 0.02
        content[f"{key}.alpha"] = torch.tensor(8.0)
    path.parent.mkdir(exist_ok=True)
    save_file(content, path)


def test_its_weights_lie_between_the_base_and_the_layer_file_and_the_recipe_names_it(
    engine: Engine, narrow: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"prompt": "a cup", "model": "tiny-sdxl", "width": 64, "height": 64, "fit": "as_is", "seed": 5}
    plain = engine.run(GenerateRequest(**given, steps=1))
    model: Any = engine._manager._models["tiny-sdxl"].model
    write_official(narrow.models_dir / "loras" / LIGHTNING, model.unet)
    stacked: list[list[str]] = []
    change = PatchStack.set

    def seen(self: PatchStack, *patches: Any) -> Any:
        stacked.append([patch.name for patch in patches])
        return change(self, *patches)

    monkeypatch.setattr(PatchStack, "set", seen)
    fast = engine.run(GenerateRequest(**given, speed="draft"))
    assert [Path(LIGHTNING).stem, "layer_xl_transparent_attn.safetensors"] in stacked
    recipe = read_recipe(fast.images[0].path)["request"]
    assert recipe["prompt"] == "<lora:sdxl-lightning-4step:1>a cup"
    assert "speed" not in recipe
    assert recipe["stages"][0]["steps"] == 4
    assert fast.licences[LIGHTNING] == "openrail++"
    later = request_from(plain.images[0].path, {"speed": "draft", "guidance_scale": 2.0})
    [task] = plan(later, narrow).tasks
    assert isinstance(task, DrawPlan)
    assert settings_of(task) == ("Euler", "SGM Uniform", 4, 2.0)
    again = engine.run(request_from(fast.images[0].path))
    assert levels_apart(fast.images[0].path, again.images[0].path) == 0
    assert levels_apart(plain.images[0].path, fast.images[0].path) != 0
