"""ControlNets of any layout -> `Part`, with no hub access: a diffusers folder, or a single file in either naming.

    part = read_controlnet("control_v11p_sd15_canny.safetensors", unet.config)
    controlnet = part.build(torch.float16, "cuda", path.name)

A ControlNet is a copy of a UNet's first half, so what a single file's shapes do not tell is the base's configuration.
"""

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.models.controlnets.controlnet import ControlNetModel
from torch import nn

from layerdiffuse_mcp.engine.weights.checkpoint import Part, Weights
from layerdiffuse_mcp.engine.weights.diffusers_folder import read_config, weight_files
from layerdiffuse_mcp.engine.weights.ldm_names import Origin, controlnet_key_map, ldm_origins
from layerdiffuse_mcp.engine.weights.tensor_file import TensorFile
from layerdiffuse_mcp.families.spec import Shapes
from layerdiffuse_mcp.families.stable_diffusion import CONTROL_PREFIX

TITLE = "ControlNet"
SETTINGS = frozenset(inspect.signature(ControlNetModel.__init__).parameters) - {"self"}
EMBEDDING = "controlnet_cond_embedding."


def read_controlnet(path: Path, unet: Mapping[str, Any]) -> Part:
    """The network in a file or folder; loads no weights. unet: the configuration of the base's UNet.

    Raises:
        ModelNotFound: there is nothing at `path`.
        CheckpointError: it is damaged, a pickle, or no ControlNet.
    """
    if os.path.isdir(path):
        config = read_config(path)
        weights = {key: (file, Origin(key)) for file in weight_files(path) for key in file}
    else:
        file = TensorFile(path)
        prefix = CONTROL_PREFIX if any(key.startswith(CONTROL_PREFIX) for key in file) else ""
        ldm = prefix + "input_hint_block.0.weight" in file
        origins = ldm_origins(file, controlnet_key_map(unet), prefix) if ldm else {key: Origin(key) for key in file}
        weights = {key: (file, origin) for key, origin in origins.items()}
        shapes = {key: file.shapes[origin.key] for key, origin in origins.items()}
        config = {name: value for name, value in unet.items() if name in SETTINGS} | _embedding(shapes)
    return Part(TITLE, TITLE, lambda: _made(config), Weights(weights))


def _embedding(shapes: Shapes) -> dict[str, Any]:
    """The widths of the encoder of pictures, as far as the tensors are there: what lacks is refused as it is built."""
    first = shapes.get(f"{EMBEDDING}conv_in.weight", (16, 3))
    odd = sorted(
        (key for key in shapes if key.startswith(f"{EMBEDDING}blocks.") and key.endswith(".weight")), key=_place
    )
    return {
        "conditioning_channels": first[1],
        "conditioning_embedding_out_channels": (first[0], *(shapes[key][0] for key in odd if _place(key) % 2)),
    }


def _place(key: str) -> int:
    """The number of a block in a key."""
    number = key.removeprefix(f"{EMBEDDING}blocks.").partition(".")[0]
    return int(number) if number.isdecimal() else 0


def _made(config: Mapping[str, Any]) -> nn.Module:
    """A ControlNet, which takes a vector (B, A) whole: given in two parts, it is joined again inside."""
    network: Any = ControlNetModel.from_config(dict(config))
    if network.config["addition_embed_type"] is not None:
        network.add_time_proj = nn.Identity()
    return network
