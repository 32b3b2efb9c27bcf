"""FLUX.1-dev: its layer file is a LoRA of the transformer, and a codec of 16 channels goes with it; drawn by diffusers.

Sources: the layer files are those of `RedAIGC/Flux-version-LayerDiffuse`, whose authors' demos say how they are used;
sizes are those of public listings; numbers of parameters are counted from the published configurations. Nothing of it
was measured: the weights were not at hand. The time is that of 3.5e15 operations: 28 steps, each 2 a parameter and
token, and attention, of 64x64 tokens and 512 of the prompt. Weights are named by indexes, so what they weigh stands
with these.
"""

from collections.abc import Mapping
from typing import Any

from layerdiffuse_mcp.families.entries import GB, MB, HubFile, ModelEntry
from layerdiffuse_mcp.families.spec import (
    Advice,
    Codec,
    Component,
    FamilySpec,
    Kind,
    LatentFormat,
    LayerMethod,
    Parameters,
    Task,
)

ID = "flux"
REPO = "black-forest-labs/FLUX.1-dev"
LAYER_REPO = "RedAIGC/Flux-version-LayerDiffuse"
LICENCE = "flux-1-dev-non-commercial-license"
"""Of the base, and so of what was trained from it."""
PICKLE = "TransparentVAE.pth"
"""The codec as it is published."""
TRANSPARENT = LayerMethod(
    "layer_flux_transparent", ID, "Transparent picture", outputs=("foreground",), transparent="foreground",
    adapter="weight_offset", strength_acts=True, published="layerlora.safetensors",
    advice=Advice(sampler="Euler", schedule="Automatic", steps=28, guidance_scale=3.5),
)  # fmt: skip
CODEC = Codec(
    encoder="layer_flux_vae_transparent_encoder.safetensors",
    decoder="layer_flux_vae_transparent_decoder.safetensors",
    clipped=False,
)
_FILES = {
    "model_index.json": 536,
    "scheduler/scheduler_config.json": 273,
    "text_encoder/config.json": 613,
    "text_encoder/model.safetensors": 246 * MB,
    "text_encoder_2/config.json": 782,
    "text_encoder_2/model.safetensors.index.json": 9.52 * GB,
    "tokenizer/merges.txt": 525_000,
    "tokenizer/special_tokens_map.json": 588,
    "tokenizer/tokenizer_config.json": 705,
    "tokenizer/vocab.json": 1.06 * MB,
    "tokenizer_2/special_tokens_map.json": 2540,
    "tokenizer_2/tokenizer.json": 2.42 * MB,
    "tokenizer_2/tokenizer_config.json": 20_800,
    "transformer/config.json": 378,
    "transformer/diffusion_pytorch_model.safetensors.index.json": 23.8 * GB,
    "vae/config.json": 820,
    "vae/diffusion_pytorch_model.safetensors": 168 * MB,
}
"""What is fetched, in bytes; an index with the weights that it names."""


def _folder_problem(transformer: Mapping[str, Any]) -> str | None:
    if transformer.get("in_channels", 64) != 64:
        return "has a transformer of other input, as bases for filling and control have"
    if not transformer.get("guidance_embeds"):
        return "takes no guidance, as FLUX.1-schnell"
    return None


def _published(path: str, converted_from: str | None = None) -> HubFile:
    return HubFile(repo=LAYER_REPO, path=path, licence=LICENCE, converted_from=converted_from)


def _in_one_file(*marks: str) -> Kind:
    instead = "use the diffusers folder of a FLUX.1-dev (with model_index.json)"
    return Kind(ID, "a Flux model in one file", marks, instead=instead)


FLUX = FamilySpec(
    id=ID,
    title="FLUX.1-dev",
    native_size=1024,
    latent=LatentFormat(channels=16, downscale=8, scale=0.3611, shift=0.1159, patch=2),
    components=(
        Component("transformer", "denoising", "transformer", network="diffusers:FluxTransformer2DModel"),
        Component("vae", "pictures", "autoencoder", network="diffusers:AutoencoderKL"),
        Component("text_encoder", "text", "text encoder", network="transformers:CLIPTextModel"),
        Component("text_encoder_2", "text", "second text encoder", network="transformers:T5EncoderModel"),
    ),
    methods={TRANSPARENT.id: TRANSPARENT},
    routes={Task.TRANSPARENT: (TRANSPARENT.id,)},
    drawer="diffusers",
    model="layerdiffuse_mcp.engine.models.flux:Flux",
    accepts=frozenset(
        {"image", "strength", "resize_mode", "steps", "guidance_scale", "layer_weight", "noise_source", "save_latent"}
    ),
    batch_limit=4,
    codec=CODEC,
    files={
        TRANSPARENT.file: _published(TRANSPARENT.file),
        CODEC.encoder: _published(CODEC.encoder, PICKLE),
        CODEC.decoder: _published(CODEC.decoder, PICKLE),
    },
    bases=(
        ModelEntry(
            name="flux-1-dev",
            family=ID,
            native_size=1024,
            licence=LICENCE,
            bytes=round(sum(_FILES.values())),
            description="FLUX.1-dev with LayerDiffuse's LoRA, not for commercial use; 12 billion parameters",
            time="35 seconds on a GPU of 100 TFLOP/s or 2 hours on a processor",
            folder=tuple(
                HubFile(repo=REPO, path=path, bytes=round(size), licence=LICENCE) for path, size in _FILES.items()
            ),
        ),
    ),
    kinds=(
        _in_one_file("double_blocks.0.", "single_blocks.0."),
        _in_one_file("single_transformer_blocks.0.", "x_embedder.weight", "context_embedder.weight"),
    ),
    pipelines=frozenset({"FluxPipeline", "FluxImg2ImgPipeline"}),
    folder_problem=_folder_problem,
    parameters=Parameters(text=4_885_371_136, denoiser=11_901_408_320, block=403_956_288, pictures=189_134_679),
    half="bfloat16",
    extra="layered",
    licence=LICENCE,
    most_tokens=512,
    activations=(1100, 4100),
)  # fmt: skip
