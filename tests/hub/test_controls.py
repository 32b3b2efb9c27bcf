"""Which ControlNets are in the models folder, and what they fit."""

import json
from pathlib import Path

import pytest

from layerdiffuse_mcp.errors import ModelNotFound
from layerdiffuse_mcp.families.entries import ControlEntry
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.hub.controls import controls, find_control
from layerdiffuse_mcp.settings import Settings
from tests.hub.files import tensors, write

FIRST, VECTOR = "controlnet_cond_embedding.conv_in.weight", "add_embedding.linear_1.weight"
AUTHORS, AUTHORS_VECTOR = "control_model.input_hint_block.0.weight", "control_model.label_emb.0.0.weight"
ATTENTION = "down_blocks.0.attentions.0.proj_in.weight"
FILES = {
    "control_v11p_sd15_openpose": ({FIRST: (16, 3, 3, 3), ATTENTION: (320, 320, 1, 1)}, "sd15", "openpose"),
    "control_v11f1p_sd15_depth": ({AUTHORS: (16, 3, 3, 3)}, "sd15", "depth"),
    "xl-lineart": ({FIRST: (16, 3, 3, 3), VECTOR: (1280, 2816)}, "sdxl", "lineart"),
    "xl-tile": ({AUTHORS: (16, 3, 3, 3), AUTHORS_VECTOR: (1280, 2816)}, "sdxl", "tile"),
    "sd2-canny": ({FIRST: (16, 3, 3, 3), ATTENTION: (320, 320)}, None, "canny"),
    "union": ({FIRST: (16, 3, 3, 3), VECTOR: (1280, 2816), "task_embedding": (8, 320)}, None, None),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_told_by_its_header(name: str, settings: Settings):
    shapes, family, kind = FILES[name]
    path = settings.models_dir / "controlnet" / f"{name}.safetensors"
    write(path, tensors(shapes))
    assert controls(settings) == (ControlEntry(name=name, path=path, family=family, kind=kind),)
    assert find_control(name.upper(), settings).name == name


def test_a_folder_of_diffusers_is_one_controlnet(settings: Settings):
    folder = settings.models_dir / "controlnet-canny-sdxl"
    write(folder / "config.json", json.dumps({"_class_name": "ControlNetModel"}).encode())
    write(folder / "diffusion_pytorch_model.fp16.safetensors", tensors(FILES["xl-lineart"][0]))
    assert [(one.name, one.path, one.family, one.kind) for one in controls(settings)] == [
        (folder.name, folder, "sdxl", "canny")
    ]
    assert all(entry.path != folder for entry in catalog.models(settings))


def test_an_unknown_name_is_refused_with_the_near_ones_or_the_folder(settings: Settings, tmp_path: Path):
    with pytest.raises(ModelNotFound, match=r"None is on this machine\. ControlNets .* go into .*controlnet"):
        find_control("canny", settings)
    write(settings.models_dir / "canny.safetensors", tensors(FILES["xl-lineart"][0]))
    with pytest.raises(ModelNotFound, match="Did you mean canny"):
        find_control("cany", settings)
    with pytest.raises(ModelNotFound, match=r"as a ControlNet it is named in options\.control"):
        catalog.find_any("canny", settings)
