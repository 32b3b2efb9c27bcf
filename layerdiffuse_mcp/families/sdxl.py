"""SDXL: its layer files are offsets of the denoiser's weights, and condition latents are joined behind the noisy one.

Sources: as `sd15.py`; the re-packed files are listed in the repositories named with them.
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
    Role,
    Shapes,
    Task,
)
from layerdiffuse_mcp.families.stable_diffusion import (
    CHANNELS,
    FIRST_SD1,
    HYPER_SD,
    LCM,
    OPENRAIL_M,
    OPTIONS,
    TRAILING,
    UNET,
    UNET_PREFIX,
    VAE,
    VECTOR,
    channels_in,
    controlnet,
    few_steps,
    released,
    unet_problem,
)

ID = "sdxl"
_AVOID = ("DPM++",)
_EULER = Advice(sampler="Euler a", schedule="Automatic")


def _method(
    name: str,
    title: str,
    forge_name: str,
    inputs: tuple[Role, ...],
    output: Role,
    advice: Advice,
    avoid_samplers: tuple[str, ...] = (),
) -> LayerMethod:
    return LayerMethod(
        f"layer_xl_{name}", ID, title, forge_name, inputs, (output,), "foreground" if output == "foreground" else None,
        "weight_offset", strength_acts=True, advice=advice, avoid_samplers=avoid_samplers,
    )  # fmt: skip


_METHODS = (
    _method(
        "transparent_attn", "Transparent picture (attention injection)",
        "Only Generate Transparent Image (Attention Injection)", (), "foreground", Advice(guidance_scale=5.0),
    ),
    _method(
        "transparent_conv", "Transparent picture (convolution injection)",
        "Only Generate Transparent Image (Conv Injection)", (), "foreground", Advice(guidance_scale=5.0),
    ),
    _method(
        "fg2ble", "Foreground to blended", "From Foreground to Blending", ("foreground",), "blended", Advice(),
    ),
    _method(
        "fgble2bg", "Foreground and blended to background", "From Foreground and Blending to Background",
        ("foreground", "blended"), "background", Advice("Euler a", "Automatic", stop_at=0.5), _AVOID,
    ),
    _method(
        "bg2ble", "Background to blended", "From Background to Blending", ("background",), "blended", Advice(),
    ),
    _method(
        "bgble2fg", "Background and blended to foreground", "From Background and Blending to Foreground",
        ("background", "blended"), "foreground", _EULER, _AVOID,
    ),
)  # fmt: skip

_REPACKED = (
    ("lllyasviel/LayerDiffuse_Diffusers", "openrail", {
        "layer_xl_transparent_attn.safetensors": "ld_diffusers_sdxl_attn.safetensors",
        "layer_xl_transparent_conv.safetensors": "ld_diffusers_sdxl_conv.safetensors",
        "vae_transparent_encoder.safetensors": "ld_diffusers_sdxl_vae_transparent_encoder.safetensors",
        "vae_transparent_decoder.safetensors": "ld_diffusers_sdxl_vae_transparent_decoder.safetensors",
    }),
    ("rootonchair/diffuser_layerdiffuse", "mit", {
        f"{method.id}.safetensors": f"diffuser_{method.id}.safetensors" for method in _METHODS
    }),
)  # fmt: skip


FIRST_SDXL = UNET_PREFIX + "input_blocks.4.1."
"""The first transformer of an SDXL base."""
MIDDLE = UNET_PREFIX + "middle_block.1."


def _is_sdxl(shapes: Shapes) -> bool:
    return VECTOR in shapes and FIRST_SDXL + "norm.weight" in shapes and FIRST_SD1 + "norm.weight" not in shapes


def _is_pruned(shapes: Shapes) -> bool:
    return _is_sdxl(shapes) and MIDDLE + "norm.weight" not in shapes


def _is_refiner(shapes: Shapes) -> bool:
    return VECTOR in shapes and UNET_PREFIX + "input_blocks.10.0.in_layers.0.weight" in shapes


def _folder_problem(unet: Mapping[str, Any]) -> str | None:
    is_refiner = len(unet.get("block_out_channels", (0, 0, 0))) != 3
    return unet_problem(unet) or ("is an SDXL refiner" if is_refiner else None)


def _base(name: str, repo: str, file: str, megabytes: int, licence: str, description: str, *aliases: str) -> ModelEntry:
    return ModelEntry(
        name=name, family=ID, native_size=1024, licence=licence, bytes=megabytes * MB, description=description,
        aliases=aliases, remote=HubFile(repo=repo, path=file, bytes=megabytes * MB, licence=licence),
    )  # fmt: skip


_FILES = released(
    {
        "layer_xl_transparent_attn.safetensors": (743 * MB, "b7919c5b"),
        "layer_xl_transparent_conv.safetensors": (3620 * MB, "5ee958d8"),
        "layer_xl_fg2ble.safetensors": (702 * MB, None),
        "layer_xl_bg2ble.safetensors": (702 * MB, None),
        "layer_xl_fgble2bg.safetensors": (702 * MB, None),
        "layer_xl_bgble2fg.safetensors": (3620 * MB, None),
        "vae_transparent_encoder.safetensors": (2_370_000, None),
        "vae_transparent_decoder.safetensors": (208 * MB, None),
    }
)

SDXL = FamilySpec(
    id=ID,
    title="SDXL",
    native_size=1024,
    latent=LatentFormat(
        channels=CHANNELS,
        downscale=8,
        scale=0.13025,
        rgb_factors=(
            (0.3651, 0.4232, 0.4341),
            (-0.2533, -0.0042, 0.1068),
            (0.1076, 0.1111, -0.0362),
            (-0.3165, -0.2492, -0.2188),
            (0.1084, -0.0175, -0.0011),
        ),
    ),
    components=(
        UNET,
        VAE,
        Component("text_encoder", "text", "text encoder", "conditioner.embedders.0.transformer."),
        Component("text_encoder_2", "text", "second text encoder", "conditioner.embedders.1.model."),
    ),
    methods={method.id: method for method in _METHODS},
    routes={
        Task.TRANSPARENT: ("layer_xl_transparent_attn",),
        Task.BACKGROUND_FROM_FOREGROUND: ("layer_xl_fg2ble", "layer_xl_fgble2bg"),
        Task.FOREGROUND_FROM_BACKGROUND: ("layer_xl_bg2ble", "layer_xl_bgble2fg"),
        Task.BLENDED_FROM_FOREGROUND: ("layer_xl_fg2ble",),
        Task.BLENDED_FROM_BACKGROUND: ("layer_xl_bg2ble",),
        Task.EXTRACT_FOREGROUND: ("layer_xl_bgble2fg",),
        Task.EXTRACT_BACKGROUND: ("layer_xl_fgble2bg",),
    },
    model="layerdiffuse_mcp.engine.models.stable_diffusion:StableDiffusionXL",
    accepts=OPTIONS | {"layer_weight"},
    clip_skip=2,
    codec=Codec(encoder="vae_transparent_encoder.safetensors", decoder="vae_transparent_decoder.safetensors"),
    files=_FILES,
    repacked={
        official: tuple(
            HubFile(repo=repo, path=names[official], licence=licence)
            for repo, licence, names in _REPACKED
            if official in names
        )
        for official in _FILES
    },
    bases=(
        _base(
            "juggernaut-xl-v6", "RunDiffusion/Juggernaut-XL-v6", "juggernautXL_version6Rundiffusion.safetensors",
            7110, OPENRAIL_M, "Photographic SDXL base; the authors' own examples were drawn with it",
            "juggernautXL_version6Rundiffusion", "1fe6c7ec54",
        ),
        _base(
            "realvisxl-v4", "SG161222/RealVisXL_V4.0", "RealVisXL_V4.0.safetensors", 6940, "openrail++",
            "Photographic SDXL base, used by the authors' diffusers release", "RealVisXL_V4.0",
        ),
    ),
    loras=(
        few_steps(
            "sdxl-lightning-4step", ID, "draft", "ByteDance/SDXL-Lightning", "sdxl_lightning_4step_lora.safetensors",
            394, TRAILING | {"steps": 4, "guidance_scale": 1.0},
        ),
        few_steps(
            "lcm-lora-sdxl", ID, "draft", "latent-consistency/lcm-lora-sdxl", "pytorch_lora_weights.safetensors",
            394, LCM | {"steps": 4},
        ),
        few_steps(
            "hyper-sdxl-8steps-cfg", ID, "normal", "ByteDance/Hyper-SD", "Hyper-SDXL-8steps-CFG-lora.safetensors",
            787, TRAILING | {"steps": 8, "guidance_scale": 5.0}, HYPER_SD,
        ),
        few_steps(
            "sdxl-lightning-8step", ID, "normal", "ByteDance/SDXL-Lightning", "sdxl_lightning_8step_lora.safetensors",
            394, TRAILING | {"steps": 8, "guidance_scale": 1.0},
        ),
    ),
    kinds=(
        Kind("sdxl_refiner", "an SDXL refiner", (VECTOR,), test=_is_refiner),
        Kind("sdxl_inpaint", "an SDXL inpainting base", test=lambda s: _is_sdxl(s) and channels_in(s) == 9),
        Kind("sdxl_edit", "an SDXL instruct-pix2pix base", test=lambda s: _is_sdxl(s) and channels_in(s) == 8),
        Kind("sdxl_pruned", "a pruned SDXL base (SSD-1B, Vega)", test=_is_pruned),
        Kind("sdxl", "an SDXL base", test=_is_sdxl, family=ID),
    ),
    adapters=(controlnet(ID, "SDXL", vector=True),),
    pipelines=frozenset({"StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"}),
    folder_problem=_folder_problem,
    parameters=Parameters(text=817 * MB, denoiser=2567 * MB, block=130 * MB, pictures=189 * MB),
    head_width=64,
    vae_fits_float16=False,
    steps_table=(14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
)  # fmt: skip
