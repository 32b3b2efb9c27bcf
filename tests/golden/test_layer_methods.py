"""Every layer method's latents equal the reference's, from files in the released key formats."""

from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from layerdiffuse_mcp.api.choices import SAMPLERS
from layerdiffuse_mcp.engine.layers.attention_sharing import SharedNetwork
from layerdiffuse_mcp.engine.layers.attention_sharing_file import SharingModel
from layerdiffuse_mcp.engine.layers.weight_offset import OffsetNetwork, read_offsets
from layerdiffuse_mcp.engine.sampling.denoiser import Denoiser
from layerdiffuse_mcp.engine.sampling.noise import BatchNoise
from layerdiffuse_mcp.engine.sampling.samplers import sample
from layerdiffuse_mcp.engine.sampling.schedules import plan, sigma_table
from layerdiffuse_mcp.engine.types import Conditioning
from layerdiffuse_mcp.engine.weights.patcher import PatchStack

from .networks import base_shapes, base_unet, conditionings

pytestmark = pytest.mark.golden_file("layer_methods")

RANK = 256  # of the released attention-sharing files
CONDITIONS = {
    "layer_xl_fg2ble": ("fg",),
    "layer_xl_bg2ble": ("bg",),
    "layer_xl_fgble2bg": ("fg", "ble"),
    "layer_xl_bgble2fg": ("bg", "ble"),
}
FRAMES = {"layer_sd15_transparent_attn": 1, "layer_sd15_joint": 3, "layer_sd15_fg2bg": 2, "layer_sd15_bg2fg": 2}
CONTROLLED = ("layer_sd15_fg2bg", "layer_sd15_bg2fg")
PROMPTS = {
    "layer_sd15_joint/prompts": ("fg", "bg", "blend"),
    "layer_sd15_joint/prompts/fg_only": ("fg", None, None),
    "layer_sd15_bg2fg": ("fg", "blend"),
}


@pytest.fixture(scope="module")
def bases(golden):
    return {family: base_unet(golden, family) for family in ("sd15", "sdxl")}


@pytest.fixture(autouse=True)
def _untouched(bases):
    before = {family: {k: t.clone() for k, t in unet.state_dict().items()} for family, unet in bases.items()}
    yield
    for family, unet in bases.items():
        after = unet.state_dict()
        assert after.keys() == before[family].keys()
        assert all(torch.equal(after[key], tensor) for key, tensor in before[family].items())


def test_latents_equal_the_reference(golden, key, bases, tmp_path):
    method, *options = key.split("/")
    path = tmp_path / f"{method}.safetensors"
    arguments: dict[str, Any] = {"guidance": 5.0 if "_xl_" in method else 7.0}
    sampler, schedule = "DPM++ 2M", "Karras"
    if "_xl_" in method:
        sampler = "UniPC" if method in ("layer_xl_fgble2bg", "layer_xl_bgble2fg") else "DPM++ 2M SDE"
        schedule = "Automatic" if sampler == "UniPC" else "Karras"
    strength = 1.0
    for option in options:
        match option.split("_"):
            case ["stop", "at", amount]:
                arguments["stop_sigma"] = sigma_table().percent_to_sigma(float(amount))
                arguments["guidance"] = 7.0
            case ["weight", amount]:
                strength = float(amount)
            case ["prompts"] | ["fg", "only"]:
                pass
            case _:
                sampler, schedule = option, "Karras"

    if "_xl_" in method:
        save_file(_offset_tensors(golden, method), path)
        stack = PatchStack(bases["sdxl"])
        layer = OffsetNetwork(stack, read_offsets(path, bases["sdxl"]).scaled(strength))
        halves, seeds = conditionings(golden, "sdxl"), golden.seeds
    else:
        save_file(_sharing_tensors(golden, method, bases["sd15"]), path)
        layer = SharedNetwork(
            bases["sd15"],
            SharingModel.read(path, bases["sd15"]),
            control=_picture(golden) if method in CONTROLLED else None,
            prompts=[name and golden.noise(f"cond.{name}", (1, 77, 64)) for name in PROMPTS.get(key, ())],
        )
        halves, frames = conditionings(golden, "sd15"), FRAMES[method]
        seeds = golden.seeds if frames < 3 else [golden.seeds[0] + f for f in range(frames)]

    positive, negative = (_with_condition(golden, method, half) for half in halves)
    with layer as run:
        table = sigma_table()
        denoiser = Denoiser(run.network, table, positive, negative, base_network=run.base_network, **arguments)
        row = SAMPLERS[sampler]
        ours = sample(row, denoiser, plan(row, schedule, 8, table), BatchNoise(seeds, (4, *golden.latent)))
    golden.check("layer_methods", key, ours)


def _offset_tensors(golden, method):
    shapes = base_shapes("sdxl")
    if method == "layer_xl_transparent_attn":
        return golden.lora_file(method, shapes)
    return golden.diff_file(method, shapes, 4 * len(CONDITIONS.get(method, ())))


def _sharing_tensors(golden, method, unet):
    with torch.device("meta"):
        model = SharingModel(unet, FRAMES[method], RANK, control=method in CONTROLLED)
    return golden.sharing_file(method, {key: tensor.shape for key, tensor in model.state_dict().items()})


def _picture(golden):
    return golden.uniform("control", (1, 3, *(8 * side for side in golden.latent)))


def _with_condition(golden, method, half):
    names = CONDITIONS.get(method)
    if not names:
        return half
    latents = [golden.noise(f"latent.{name}", (1, 4, *golden.latent)) for name in names]
    return Conditioning(half.context, half.vector, torch.cat(latents, dim=1))
