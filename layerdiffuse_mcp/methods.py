"""The table of layer methods: what the released layer files do, in one place.

The engine runs a row, the tools and the command line offer its choices, the
documentation prints it and the tests iterate over it. A *method* is one layer
file; a *task* is what a user wishes for, and `ROUTES` says which methods fulfil
it in which family, one after another.

Sources: `lllyasviel/sd-forge-layerdiffuse` (methods, pictures in and out) and the
authors' advice on samplers in its README.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, get_args

Family = Literal["sd15", "sdxl"]
Role = Literal["foreground", "background", "blended"]

FAMILIES: tuple[Family, ...] = get_args(Family)
ROLES: tuple[Role, ...] = get_args(Role)


class Task(StrEnum):
    """What a user wishes for."""

    TRANSPARENT = "transparent"
    LAYERS = "layers"
    BACKGROUND_FROM_FOREGROUND = "background_from_foreground"
    FOREGROUND_FROM_BACKGROUND = "foreground_from_background"
    BLENDED_FROM_FOREGROUND = "blended_from_foreground"
    BLENDED_FROM_BACKGROUND = "blended_from_background"
    EXTRACT_FOREGROUND = "extract_foreground"
    EXTRACT_BACKGROUND = "extract_background"


@dataclass(frozen=True)
class Advice:
    """The settings the authors recommend; used wherever a request leaves one open."""

    sampler: str = "DPM++ 2M SDE"
    schedule: str = "Karras"
    steps: int = 20
    guidance_scale: float = 7.0
    stop_at: float = 1.0


@dataclass(frozen=True)
class Method:
    """One layer file and how it is run.

    `inputs` are the pictures it is conditioned on, in the order in which their latents
    are joined (SDXL) or shown to the control encoder (SD1.5). `outputs` has one role a
    frame; `transparent` is the output that is decoded with alpha, if any.
    """

    id: str
    family: Family
    title: str
    forge_name: str
    inputs: tuple[Role, ...]
    outputs: tuple[Role, ...]
    transparent: Role | None
    advice: Advice
    extra_channels: int = 0
    has_strength: bool = False

    @property
    def file(self) -> str:
        """Name of the layer file in the release."""
        return f"{self.id}.safetensors"

    @property
    def frames(self) -> int:
        """Pictures drawn together for one result."""
        return len(self.outputs)


_XL = Advice(guidance_scale=5.0)
_SD15 = Advice(sampler="DPM++ 2M")

_ROWS = (
    Method(
        "layer_xl_transparent_attn", "sdxl", "Transparent picture (attention injection)",
        "Only Generate Transparent Image (Attention Injection)",
        inputs=(), outputs=("foreground",), transparent="foreground", advice=_XL, has_strength=True,
    ),
    Method(
        "layer_xl_transparent_conv", "sdxl", "Transparent picture (convolution injection)",
        "Only Generate Transparent Image (Conv Injection)",
        inputs=(), outputs=("foreground",), transparent="foreground", advice=_XL, has_strength=True,
    ),
    Method(
        "layer_xl_fg2ble", "sdxl", "Foreground to blended", "From Foreground to Blending",
        inputs=("foreground",), outputs=("blended",), transparent=None,
        advice=Advice(), extra_channels=4, has_strength=True,
    ),
    Method(
        "layer_xl_fgble2bg", "sdxl", "Foreground and blended to background",
        "From Foreground and Blending to Background",
        inputs=("foreground", "blended"), outputs=("background",), transparent=None,
        advice=Advice(sampler="Euler a", schedule="Automatic", stop_at=0.5), extra_channels=8, has_strength=True,
    ),
    Method(
        "layer_xl_bg2ble", "sdxl", "Background to blended", "From Background to Blending",
        inputs=("background",), outputs=("blended",), transparent=None,
        advice=Advice(), extra_channels=4, has_strength=True,
    ),
    Method(
        "layer_xl_bgble2fg", "sdxl", "Background and blended to foreground",
        "From Background and Blending to Foreground",
        inputs=("background", "blended"), outputs=("foreground",), transparent="foreground",
        advice=Advice(sampler="Euler a", schedule="Automatic"), extra_channels=8, has_strength=True,
    ),
    Method(
        "layer_sd15_transparent_attn", "sd15", "Transparent picture",
        "(SD1.5) Only Generate Transparent Image (Attention Injection)",
        inputs=(), outputs=("foreground",), transparent="foreground", advice=_SD15,
    ),
    Method(
        "layer_sd15_joint", "sd15", "Foreground, background and blended together",
        "(SD1.5) Generate Everything Together",
        inputs=(), outputs=("foreground", "background", "blended"), transparent="foreground", advice=_SD15,
    ),
    Method(
        "layer_sd15_fg2bg", "sd15", "Foreground to background and blended", "(SD1.5) From Foreground to Background",
        inputs=("foreground",), outputs=("background", "blended"), transparent=None, advice=_SD15,
    ),
    Method(
        "layer_sd15_bg2fg", "sd15", "Background to foreground and blended", "(SD1.5) From Background to Foreground",
        inputs=("background",), outputs=("foreground", "blended"), transparent="foreground", advice=_SD15,
    ),
)  # fmt: skip

METHODS: dict[str, Method] = {row.id: row for row in _ROWS}

ROUTES: dict[tuple[Task, Family], tuple[str, ...]] = {
    (Task.TRANSPARENT, "sdxl"): ("layer_xl_transparent_attn",),
    (Task.TRANSPARENT, "sd15"): ("layer_sd15_transparent_attn",),
    (Task.LAYERS, "sd15"): ("layer_sd15_joint",),
    (Task.BACKGROUND_FROM_FOREGROUND, "sdxl"): ("layer_xl_fg2ble", "layer_xl_fgble2bg"),
    (Task.BACKGROUND_FROM_FOREGROUND, "sd15"): ("layer_sd15_fg2bg",),
    (Task.FOREGROUND_FROM_BACKGROUND, "sdxl"): ("layer_xl_bg2ble", "layer_xl_bgble2fg"),
    (Task.FOREGROUND_FROM_BACKGROUND, "sd15"): ("layer_sd15_bg2fg",),
    (Task.BLENDED_FROM_FOREGROUND, "sdxl"): ("layer_xl_fg2ble",),
    (Task.BLENDED_FROM_FOREGROUND, "sd15"): ("layer_sd15_fg2bg",),
    (Task.BLENDED_FROM_BACKGROUND, "sdxl"): ("layer_xl_bg2ble",),
    (Task.BLENDED_FROM_BACKGROUND, "sd15"): ("layer_sd15_bg2fg",),
    (Task.EXTRACT_FOREGROUND, "sdxl"): ("layer_xl_bgble2fg",),
    (Task.EXTRACT_BACKGROUND, "sdxl"): ("layer_xl_fgble2bg",),
}
"""The methods that fulfil a task in a family, in the order in which they run.

A later stage takes the blended picture of the one before it as its input.
"""

TRANSPARENCY_FILES: dict[Family, dict[str, str]] = {
    "sdxl": {"encoder": "vae_transparent_encoder.safetensors", "decoder": "vae_transparent_decoder.safetensors"},
    "sd15": {
        "encoder": "layer_sd15_vae_transparent_encoder.safetensors",
        "decoder": "layer_sd15_vae_transparent_decoder.safetensors",
    },
}
"""The latent transparency files of a family: the offset encoder and the RGBA decoder."""


def families_for(task: Task) -> tuple[Family, ...]:
    """The families whose layer files can do `task`."""
    return tuple(family for family in FAMILIES if (task, family) in ROUTES)


def task_inputs(task: Task, family: Family) -> tuple[Role, ...]:
    """The pictures a user has to give for `task`: what its stages need and do not make themselves."""
    needed: list[Role] = []
    made: set[Role] = set()
    for method_id in ROUTES[task, family]:
        method = METHODS[method_id]
        for role in method.inputs:
            if role not in made and role not in needed:
                needed.append(role)
        made.update(method.outputs)
    return tuple(needed)
