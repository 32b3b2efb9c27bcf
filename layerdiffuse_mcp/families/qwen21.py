"""Qwen-Image-2.1: draws pictures with alpha and changes given ones as the prompt says, by diffusers' own pipeline.

Sources: the authors' pages of `Qwen/Qwen-Image-2.1` (settings, licence, prompts), public listings of its files, and
diffusers. Nothing of it was measured here: the weights were not at hand. Numbers of parameters are those of the
published files; what a picture takes is counted from networks of the published shape, and agrees with the 24 GB that
its authors measured beside the weights at 2048 px. The time is that of 2.7e15 operations: 40 steps without guidance,
each 2 a parameter and token, and attention, of 64x64 tokens. Weights are named by indexes, so what they weigh stands
with these.
"""

from layerdiffuse_mcp.families.entries import GB, MB, HubFile, ModelEntry
from layerdiffuse_mcp.families.spec import Advice, Component, FamilySpec, LatentFormat, LayerMethod, Parameters, Task

ID = "qwen21"
REPO = "Qwen/Qwen-Image-2.1"
LICENCE = "qwen-research"
"""The Qwen Research License Agreement: research and evaluation, nothing commercial."""
TRANSPARENT = LayerMethod(
    "qwen_image_transparent", ID, "Transparent picture", outputs=("foreground",), transparent="foreground", reads=5,
    advice=Advice(sampler="Euler", schedule="Automatic", steps=40, guidance_scale=1.0),
)  # fmt: skip
_FILES = {
    "model_index.json": 447,
    "processor/preprocessor_config.json": 782,
    "processor/tokenizer.json": 11.4 * MB,
    "processor/tokenizer_config.json": 5445,
    "scheduler/scheduler_config.json": 485,
    "text_encoder/config.json": 1517,
    "text_encoder/model.safetensors.index.json": 17.5 * GB,
    "transformer/config.json": 370,
    "transformer/diffusion_pytorch_model.safetensors.index.json": 14.2 * GB,
    "vae/config.json": 2079,
    "vae/diffusion_pytorch_model.safetensors": 1.35 * GB,
}
"""What is fetched, in bytes; an index with the weights that it names."""

QWEN21 = FamilySpec(
    id=ID,
    title="Qwen-Image-2.1",
    native_size=1024,
    near=(0.5, 4.0),
    size_step=32,
    latent=LatentFormat(channels=64, downscale=16, pictures=4, patch=2),
    components=(
        Component("text_encoder", "text", "text encoder", network="transformers:Qwen3VLForConditionalGeneration"),
        Component("transformer", "denoising", "transformer", network="diffusers:QwenImage21Transformer2DModel"),
        Component("vae", "pictures", "autoencoder", network="diffusers:AutoencoderKLQwenImage21"),
    ),
    methods={TRANSPARENT.id: TRANSPARENT},
    routes={Task.TRANSPARENT: (TRANSPARENT.id,)},
    drawer="diffusers",
    model="layerdiffuse_mcp.engine.models.qwen21:Qwen21",
    accepts=frozenset({"negative_prompt", "image", "resize_mode", "steps", "guidance_scale", "noise_source"}),
    batch_limit=4,
    least_steps=2,
    half="bfloat16",
    extra="layered",
    licence=LICENCE,
    bases=(
        ModelEntry(
            name="qwen-image-2.1",
            family=ID,
            native_size=1024,
            licence=LICENCE,
            bytes=round(sum(_FILES.values())),
            description="Draws with alpha and edits as it is told, not for commercial use; 7 billion parameters",
            time="27 seconds on a GPU of 100 TFLOP/s or 1.5 hours on a processor",
            folder=tuple(
                HubFile(repo=REPO, path=path, bytes=round(size), licence=LICENCE) for path, size in _FILES.items()
            ),
        ),
    ),
    pipelines=frozenset({"QwenImage21Pipeline"}),
    parameters=Parameters(text=8_767_123_696, denoiser=7_115_124_736, block=353_898_752, pictures=337_740_404),
    activations=(1220, 12_900),
)  # fmt: skip
