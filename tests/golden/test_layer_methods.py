"""Every layer method's latents equal the reference's, drawn as the product draws them.

A case becomes a plan, whose results go through `pipeline.draw_stage`: seeds a frame, joined prompts, the condition's
draw, files in the released key formats. What the set gives as tensors, the base reads from texts and pictures.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.api.requests import GenerateRequest, Stage, is_route
from layerdiffuse_mcp.engine.device.placement import place
from layerdiffuse_mcp.engine.models.components import Components
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.pipeline.batch import Result, results_of
from layerdiffuse_mcp.engine.pipeline.pipeline import draw_stage
from layerdiffuse_mcp.engine.pipeline.progress import Meter
from layerdiffuse_mcp.engine.sampling.latent_space import to_unscaled
from layerdiffuse_mcp.engine.sampling.noise import PhiloxNormal
from layerdiffuse_mcp.engine.types import Conditioning, Pictures
from layerdiffuse_mcp.engine.weights.reader import read_checkpoint
from layerdiffuse_mcp.families.entries import ModelFiles
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.families.spec import LayerMethod, Role, Task
from layerdiffuse_mcp.images.alpha import Bytes
from tests.tasks import plan_of

from .conftest import GoldenSet
from .narrow_files import layer_tensors, write_base
from .networks import conditionings

pytestmark = pytest.mark.golden_file("layer_methods")

NAMES: Mapping[Role, str] = {"foreground": "fg", "background": "bg", "blended": "ble"}
PROMPTS: Mapping[str, dict[Role, str]] = {
    "layer_sd15_joint/prompts": {"foreground": "cond.fg", "background": "cond.bg", "blended": "cond.blend"},
    "layer_sd15_joint/prompts/fg_only": {"foreground": "cond.fg"},
    "layer_sd15_bg2fg": {"foreground": "cond.fg", "blended": "cond.blend"},
}
CONDITION_STREAM = 2**41  # added to a seed: the posterior's draw


class GoldenBase(StableDiffusion):
    """A narrow base that reads the set's tensors: `texts` by prompt, `means` of posteriors by a picture's level."""

    texts: dict[str, Conditioning]
    means: dict[int, Tensor]

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.means[round(float(pixels.mean()) * 255)]
        return mean, torch.ones_like(mean)

    def _embed(self, encoders: Any, prompt: str, **options: Any) -> tuple[Tensor, Tensor | None]:
        return self.texts[prompt].context, self.texts[prompt].vector

    def _conditioning(self, embeddings: tuple[Tensor, Tensor | None], width: int, height: int) -> Conditioning:
        return Conditioning(*embeddings)


@pytest.fixture(scope="module")
def bases(golden: GoldenSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, GoldenBase]:
    return {family: golden_base(golden, family, tmp_path_factory.mktemp(family)) for family in ("sd15", "sdxl")}


def golden_base(golden: GoldenSet, family: str, folder: Path) -> GoldenBase:
    """A base in `folder`, and the texts of the set."""
    checkpoint = read_checkpoint(write_base(folder, golden, family))
    base = GoldenBase(family, Components(checkpoint, place("cpu", "float32")))
    cond, uncond = conditionings(golden, family)
    base.texts = {"cond": cond, "uncond": uncond}
    for name in {name for names in PROMPTS.values() for name in names.values()}:
        base.texts[f"{name}, cond"] = Conditioning(golden.noise(name, (1, 77, 64)))
    return base


@pytest.fixture(autouse=True)
def _untouched(bases: dict[str, GoldenBase]) -> Iterator[None]:
    yield
    for base in bases.values():
        base.network().set_weights()
        loaded = base.components.checkpoint.unet().state_dict()
        now = base.unet.state_dict()
        assert now.keys() == loaded.keys()
        assert all(torch.equal(now[key], tensor) for key, tensor in loaded.items())


def test_latents_equal_the_reference(golden: GoldenSet, key: str, bases: dict[str, GoldenBase], tmp_path: Path) -> None:
    stage = stage_of(key)
    method = METHODS[stage.method]
    base = bases[method.family]
    save_file(layer_tensors(golden, method), tmp_path / method.file)
    folder = base.components.checkpoint.path.parent
    files = {path.name: path for path in (tmp_path / method.file, *folder.iterdir())}
    base.components.files = ModelFiles(base=base.components.checkpoint.path, layers=files)

    results = results_for(golden, key, stage)
    pictures = given(golden, method, results, base)
    layers = draw_stage(stage, base, results, pictures, None, Pictures(), None, Meter(lambda _: None), lambda *_: None)
    golden.check("layer_methods", key, torch.stack([layer.latent for layer in layers]))


def stage_of(key: str) -> Stage:
    """The settings of the run that a key names."""
    method, *options = key.split("/")
    settings: dict[str, Any] = {"sampler": "DPM++ 2M", "schedule": "Karras", "guidance_scale": 7.0}
    if METHODS[method].family == "sdxl":
        settings |= {"sampler": "DPM++ 2M SDE", "guidance_scale": 5.0}
        if len(METHODS[method].inputs) == 2:
            settings |= {"sampler": "UniPC", "schedule": "Automatic"}
    for option in options:
        match option.split("_"):
            case ["stop", "at", amount]:
                settings |= {"stop_at": float(amount), "guidance_scale": 7.0}
            case ["weight", amount]:
                settings["layer_weight"] = float(amount)
            case ["prompts"] | ["fg", "only"]:
                pass
            case _:
                settings |= {"sampler": option, "schedule": "Karras"}
    return Stage(method=method, steps=8, **settings)


def results_for(golden: GoldenSet, key: str, stage: Stage) -> list[Result]:
    """The batch of a case: both seeds of the set where a result is one picture, else one result, begun at the first."""
    method = METHODS[stage.method]
    height, width = (8 * side for side in golden.latent)
    request = GenerateRequest(
        task=next(task for task in Task if is_route(task, [method.id])),
        prompt="cond",
        negative_prompt="uncond",
        layer_prompts=PROMPTS.get(key, {}),
        inputs={role: Path(f"{role}.png") for role in method.inputs},
        width=width,
        height=height,
        stages=(stage,),
    )
    plan = plan_of(request, method.family)
    seeds = golden.seeds if method.frames == 1 else golden.seeds[:1]
    plans: list[DrawPlan] = [plan.model_copy(update={"seed": seed}) for seed in seeds]
    return results_of(plans)


def given(golden: GoldenSet, method: LayerMethod, results: list[Result], base: GoldenBase) -> dict[Role, list[Bytes]]:
    """The method's pictures, by role one a result: the control picture, or one whose posterior gives the set's latent.

    That one is drawn from with the next normal numbers of the result's own stream.
    """
    height, width = (8 * side for side in golden.latent)
    if method.adapter == "attention_sharing":
        control = golden.uniform("control", (1, 3, height, width))  # of which eight bits are as good: see there
        picture = (control[0].movedim(0, -1) * 255).round().to(torch.uint8).numpy()
        return {role: [picture] * len(results) for role in method.inputs}
    base.means = {}
    pictures: dict[Role, list[Bytes]] = {role: [] for role in method.inputs}
    for result in results:
        draws = PhiloxNormal(result.seed + CONDITION_STREAM)
        for role, chosen in pictures.items():
            latent = golden.noise(f"latent.{NAMES[role]}", (1, 4, *golden.latent))
            level = 10 * (1 + len(base.means))
            base.means[level] = to_unscaled(latent, base.latent) - draws.draw((4, *golden.latent))
            chosen.append(np.full((height, width, 3), level, np.uint8))
    return pictures
