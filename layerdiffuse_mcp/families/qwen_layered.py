"""Qwen-Image-Layered: takes a picture apart into layers with alpha, by diffusers' own pipeline.

Sources: the authors' page of `Qwen/Qwen-Image-Layered` (settings, licence), arXiv:2512.15603, and diffusers, from whose
configurations of the published networks the numbers of parameters are counted. Nothing of it was measured: the weights
were not at hand. The time is that of 4.6e16 operations: 50 steps with guidance, each 2 a parameter and token, and
attention, of 6 pictures of 40x40 tokens. Weights are named by indexes, so what they weigh stands with these.
"""

from layerdiffuse_mcp.families.entries import GB, MB, HubFile, ModelEntry
from layerdiffuse_mcp.families.spec import Advice, Component, FamilySpec, LatentFormat, LayerMethod, Parameters, Task

ID = "qwen_layered"
REPO = "Qwen/Qwen-Image-Layered"
LICENCE = "Apache-2.0"
APART = LayerMethod(
    "qwen_image_layered", ID, "A picture into layers", inputs=("blended",), takes_apart=True,
    advice=Advice(sampler="Euler", schedule="Automatic", steps=50, guidance_scale=4.0),
)  # fmt: skip
_FILES = {
    "model_index.json": 600,
    "scheduler/scheduler_config.json": 500,
    "text_encoder/config.json": 3200,
    "text_encoder/model.safetensors.index.json": 16.6 * GB,
    "tokenizer/merges.txt": 1.7 * MB,
    "tokenizer/tokenizer_config.json": 4700,
    "tokenizer/vocab.json": 3.4 * MB,
    "transformer/config.json": 500,
    "transformer/diffusion_pytorch_model.safetensors.index.json": 40.9 * GB,
    "vae/config.json": 800,
    "vae/diffusion_pytorch_model.safetensors": 254 * MB,
}
"""What is fetched, in bytes; an index with the weights that it names."""

QWEN_LAYERED = FamilySpec(
    id=ID,
    title="Qwen-Image-Layered",
    native_size=640,
    size_step=32,
    latent=LatentFormat(channels=16, downscale=8, pictures=4),
    components=(
        Component(
            "text_encoder", "text", "text encoder", network="transformers:Qwen2_5_VLForConditionalGeneration",
            renamed=(("visual.", "model.visual."), ("model.", "model.language_model.")),
        ),
        Component("transformer", "denoising", "transformer", network="diffusers:QwenImageTransformer2DModel"),
        Component("vae", "pictures", "autoencoder", network="diffusers:AutoencoderKLQwenImage"),
    ),
    methods={APART.id: APART},
    routes={Task.DECOMPOSE: (APART.id,)},
    drawer="diffusers",
    model="layerdiffuse_mcp.engine.models.qwen_layered:QwenLayered",
    accepts=frozenset({"negative_prompt", "layers", "depth", "document", "steps", "guidance_scale", "noise_source"}),
    batch_limit=1,
    half="bfloat16",
    extra="layered",
    bases=(
        ModelEntry(
            name="qwen-image-layered",
            family=ID,
            native_size=640,
            licence=LICENCE,
            bytes=round(sum(_FILES.values())),
            description="Takes pictures apart into layers, for decompose_image; 20 billion parameters",
            time="8 minutes on a GPU of 100 TFLOP/s or a day on a processor for 4 layers",
            folder=tuple(
                HubFile(repo=REPO, path=path, bytes=round(size), licence=LICENCE) for path, size in _FILES.items()
            ),
        ),
    ),
    pipelines=frozenset({"QwenImageLayeredPipeline"}),
    parameters=Parameters(text=8_292_166_656, denoiser=20_430_407_232, block=380_360_768, pictures=126_897_716),
    frames=6,
    activations=(800, 4100),
)  # fmt: skip
