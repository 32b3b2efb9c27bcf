"""Stable Diffusion 1.5: its layer files share attention among the frames that are drawn together.

Sources: `lllyasviel/sd-forge-layerdiffuse` (methods, pictures in and out, advice on samplers), the listings of the
repositories named below (files, sizes), ComfyUI and Forge (the colours of latent channels).
"""

from collections.abc import Mapping
from typing import Any

from layerdiffuse_mcp.families.entries import MB, HubFile, ModelEntry
from layerdiffuse_mcp.families.spec import (
    Advice,
    Codec,
    Component,
    FamilySpec,
    Kind,
    LatentFormat,
    LayerMethod,
    Parameters,
    Shapes,
    Task,
)
from layerdiffuse_mcp.families.stable_diffusion import (
    CHANNELS,
    CONV_IN,
    FIRST_SD1,
    HYPER_SD,
    LCM,
    OPENRAIL_M,
    OPTIONS,
    TRAILING,
    UNET,
    VAE,
    VECTOR,
    channels_in,
    controlnet,
    few_steps,
    ip_adapter,
    is_linear,
    released,
    unet_problem,
)

ID = "sd15"
_ADVICE = Advice(sampler="DPM++ 2M")

_METHODS = (
    LayerMethod(
        "layer_sd15_transparent_attn", ID, "Transparent picture",
        "(SD1.5) Only Generate Transparent Image (Attention Injection)",
        outputs=("foreground",), transparent="foreground", adapter="attention_sharing", advice=_ADVICE,
    ),
    LayerMethod(
        "layer_sd15_joint", ID, "Foreground, background and blended together", "(SD1.5) Generate Everything Together",
        outputs=("foreground", "background", "blended"), transparent="foreground", adapter="attention_sharing",
        advice=_ADVICE,
    ),
    LayerMethod(
        "layer_sd15_fg2bg", ID, "Foreground to background and blended", "(SD1.5) From Foreground to Background",
        inputs=("foreground",), outputs=("background", "blended"), adapter="attention_sharing", advice=_ADVICE,
    ),
    LayerMethod(
        "layer_sd15_bg2fg", ID, "Background to foreground and blended", "(SD1.5) From Background to Foreground",
        inputs=("background",), outputs=("foreground", "blended"), transparent="foreground",
        adapter="attention_sharing", advice=_ADVICE,
    ),
)  # fmt: skip


def _without_vector(shapes: Shapes) -> bool:
    return VECTOR not in shapes


def _folder_problem(unet: Mapping[str, Any]) -> str | None:
    is_sd2 = unet.get("use_linear_projection") or unet.get("cross_attention_dim") == 1024
    return unet_problem(unet) or ("is an SD 2.x base" if is_sd2 else None)


SD15 = FamilySpec(
    id=ID,
    title="SD 1.5",
    native_size=512,
    latent=LatentFormat(
        channels=CHANNELS,
        downscale=8,
        scale=0.18215,
        rgb_factors=(
            (0.3512, 0.2297, 0.3227),
            (0.3250, 0.4974, 0.2350),
            (-0.2829, 0.1762, 0.2721),
            (-0.2120, -0.2616, -0.7177),
            (0.0, 0.0, 0.0),
        ),
    ),
    components=(UNET, VAE, Component("text_encoder", "text", "text encoder", "cond_stage_model.transformer.")),
    methods={method.id: method for method in _METHODS},
    routes={
        Task.TRANSPARENT: ("layer_sd15_transparent_attn",),
        Task.LAYERS: ("layer_sd15_joint",),
        Task.BACKGROUND_FROM_FOREGROUND: ("layer_sd15_fg2bg",),
        Task.FOREGROUND_FROM_BACKGROUND: ("layer_sd15_bg2fg",),
        Task.BLENDED_FROM_FOREGROUND: ("layer_sd15_fg2bg",),
        Task.BLENDED_FROM_BACKGROUND: ("layer_sd15_bg2fg",),
    },
    model="layerdiffuse_mcp.engine.models.stable_diffusion:StableDiffusion15",
    accepts=OPTIONS,
    codec=Codec(
        encoder="layer_sd15_vae_transparent_encoder.safetensors",
        decoder="layer_sd15_vae_transparent_decoder.safetensors",
    ),
    files=released(
        {
            "layer_sd15_transparent_attn.safetensors": (350 * MB, "cc9ee874"),
            "layer_sd15_joint.safetensors": (554 * MB, None),
            "layer_sd15_fg2bg.safetensors": (563 * MB, None),
            "layer_sd15_bg2fg.safetensors": (563 * MB, None),
            "layer_sd15_vae_transparent_encoder.safetensors": (2_370_000, None),
            "layer_sd15_vae_transparent_decoder.safetensors": (208 * MB, None),
        }
    ),
    bases=(
        ModelEntry(
            name="realistic-vision-v51",
            family=ID,
            native_size=512,
            licence=OPENRAIL_M,
            bytes=2130 * MB,
            description="Photographic SD1.5 base with its VAE; used by the authors for the SD1.5 layer files",
            aliases=("realisticVisionV51_v51VAE", "15012c538f"),
            remote=HubFile(
                repo="lllyasviel/fav_models",
                path="fav/realisticVisionV51_v51VAE.safetensors",
                bytes=2130 * MB,
                licence=OPENRAIL_M,
            ),
        ),
    ),
    embedded=(
        ModelEntry(
            name="pocket",
            family=ID,
            native_size=128,
            licence="Apache-2.0",
            description="Small model inside the package: emoji-like subjects at 128 px in seconds on a CPU",
            vocabulary="concepts.json",
            batches_pay=True,
        ),
    ),
    loras=(
        few_steps(
            "lcm-lora-sdv1-5", ID, "draft", "latent-consistency/lcm-lora-sdv1-5", "pytorch_lora_weights.safetensors",
            135, LCM | {"steps": 4},
        ),
        few_steps(
            "hyper-sd15-8steps-cfg", ID, "normal", "ByteDance/Hyper-SD", "Hyper-SD15-8steps-CFG-lora.safetensors",
            269, TRAILING | {"steps": 8, "guidance_scale": 5.0}, HYPER_SD,
        ),
    ),
    kinds=(
        Kind("sd2", "an SD 2.x base", test=lambda s: _without_vector(s) and is_linear(s, FIRST_SD1)),
        Kind("sd15_inpaint", "an SD 1.5 inpainting base", test=lambda s: _without_vector(s) and channels_in(s) == 9),
        Kind("sd15_edit", "an SD 1.5 instruct-pix2pix base", test=lambda s: _without_vector(s) and channels_in(s) == 8),
        Kind("sd15", "an SD 1.5 base", (CONV_IN, FIRST_SD1), test=_without_vector, family=ID),
    ),
    adapters=(controlnet(ID, "SD 1.5", vector=False), ip_adapter(ID, "SD 1.5", lambda layers: layers == 16)),
    pipelines=frozenset({"StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"}),
    folder_problem=_folder_problem,
    parameters=Parameters(text=123 * MB, denoiser=860 * MB, block=60 * MB, pictures=189 * MB, layer=293 * MB),
    heads=8,
    steps_table=(14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
)  # fmt: skip
