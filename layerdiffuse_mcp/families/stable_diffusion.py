"""What the cards of the Stable Diffusion line have in common: the release's repository, single-file names, options."""

from collections.abc import Mapping
from typing import Any

from layerdiffuse_mcp.families.entries import MB, HubFile, LoraEntry, Speed
from layerdiffuse_mcp.families.spec import Component, Kind, Shapes

LAYER_REPO = "LayerDiffusion/layerdiffusion-v1"
OPENRAIL_M = "creativeml-openrail-m"

CHANNELS = 4
"""Of the latents."""

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
UNET = Component("unet", "denoising", "UNet", UNET_PREFIX)
VAE = Component("vae", "pictures", "VAE", VAE_PREFIX)

CONV_IN = UNET_PREFIX + "input_blocks.0.0.weight"
VECTOR = UNET_PREFIX + "label_emb.0.0.weight"
FIRST_SD1 = UNET_PREFIX + "input_blocks.1.1."
"""The first transformer of an SD1.x or SD2.x UNet."""

CONTROL_PREFIX = "control_model."
CONTROL_MARKS = ("controlnet_cond_embedding.", "input_hint_block.0.")
"""Of a ControlNet's encoder of pictures, in diffusers' names and in those of its authors."""
_CONTROL_VECTORS = ("add_embedding.linear_1.weight", "label_emb.0.0.weight")
_CONTROL_FIRST = ("down_blocks.0.attentions.0.proj_in.weight", "input_blocks.1.1.proj_in.weight")
_OTHER_CONTROLS = ("task_embedding", "control_add_embedding", "lora_controlnet")
"""Of networks that are called so and are none: unions of several, and those that hold low-rank changes alone."""

OPTIONS = frozenset(
    {
        "negative_prompt",
        "layer_prompts",
        "image",
        "mask",
        "strength",
        "detail",
        "control",
        "speed",
        "resize_mode",
        "method",
        "sampler",
        "schedule",
        "steps",
        "guidance_scale",
        "stop_at",
        "clip_skip",
        "emphasis",
        "noise_source",
        "loras",
        "save_latent",
    }
)
"""The options of a request that act on every family of the line."""


LCM = {"sampler": "LCM", "schedule": "SGM Uniform", "guidance_scale": 1.0}
"""For latent consistency (arXiv:2311.05556): noise anew at each step."""
TRAILING = {"sampler": "Euler", "schedule": "SGM Uniform"}
"""For those whose authors ask for DDIM or Euler with trailing timesteps, which at eta 0 are one."""
HYPER_SD = "a08b9c3da8dc3be0a6e79b04721bf237241403f9"
"""The commit at which Hyper-SD was under one licence: since models of other licences are in it, its page names none."""


def few_steps(
    name: str,
    family: str,
    speed: Speed,
    repo: str,
    path: str,
    megabytes: int,
    advice: Mapping[str, Any],
    revision: str | None = None,
) -> LoraEntry:
    """A published LoRA that lets a base of the family draw in `advice["steps"]` steps. Its checksum is not pinned."""
    licence = "openrail++"
    return LoraEntry(
        name=name,
        description=f"{advice['steps']} steps with any base of its family",
        licence=licence,
        family=family,
        remote=HubFile(repo=repo, path=path, bytes=megabytes * MB, licence=licence, revision=revision),
        advice=dict(advice),
        speed=speed,
    )


def released(sizes: dict[str, tuple[int, str | None]]) -> dict[str, HubFile]:
    """The rows of the release: size in bytes (rounded) and as much of the SHA-256 as is public, by file name."""
    return {
        name: HubFile(repo=LAYER_REPO, path=name, bytes=size, sha256=sha256, licence=OPENRAIL_M)
        for name, (size, sha256) in sizes.items()
    }


def unet_problem(unet: Mapping[str, Any]) -> str | None:
    """What keeps layer files from fitting any UNet of this configuration."""
    channels = unet.get("in_channels", CHANNELS)
    if channels == CHANNELS:
        return None
    return f"has a UNet of {channels} input channels, as inpainting and editing bases have"


def channels_in(shapes: Shapes) -> int:
    """Input channels of the UNet in a single-file checkpoint; 0 when there is none."""
    shape = shapes.get(CONV_IN, ())
    return shape[1] if len(shape) > 1 else 0


def controlnet(family: str, title: str, vector: bool) -> Kind:
    """How a ControlNet is recognised whose bases have a vector, or none."""

    def test(shapes: Shapes) -> bool:
        named = {key.removeprefix(CONTROL_PREFIX): shape for key, shape in shapes.items()}
        other = any(mark in name for mark in _OTHER_CONTROLS for name in named)
        sd2 = not vector and any(len(named.get(first, ())) == 2 for first in _CONTROL_FIRST)
        return not (other or sd2) and vector == any(name in named for name in _CONTROL_VECTORS)

    return Kind("controlnet", f"a ControlNet for {title}", any_of=CONTROL_MARKS, test=test, adapts=family)


def is_linear(shapes: Shapes, block: str) -> bool:
    """Whether a transformer's `proj_in` is a matrix rather than a 1x1 convolution."""
    return len(shapes.get(block + "proj_in.weight", ())) == 2
