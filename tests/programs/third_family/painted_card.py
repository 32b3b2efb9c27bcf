"""The card of a third family, as a package of somebody else's brings it: see the entry point beside this file.

Its bases are diffusers folders, whose pipeline draws a stack of layers, each with alpha and a name of the model's own.
"""

from layerdiffuse_mcp.families.spec import Advice, Component, FamilySpec, LatentFormat, LayerMethod, Task

ID = "painted"
LAYERS = LayerMethod(
    "painted_layers", ID, "A stack of named layers", advice=Advice(sampler="Euler a", schedule="Automatic", steps=4)
)

PAINTED = FamilySpec(
    id=ID,
    title="Painted Layers",
    native_size=64,
    size_step=8,
    latent=LatentFormat(
        channels=4, downscale=2, scale=0.5, pictures=4,
        rgb_factors=((0.5, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 0.5), (0.1, 0.1, 0.1), (0.0, 0.0, 0.0)),
    ),
    components=(
        Component("words", "text", "text encoder", network="painted_model:Words"),
        Component("painter", "denoising", "painter", network="painted_model:Painter"),
        Component("vae", "pictures", "autoencoder", network="diffusers:AutoencoderKL"),
    ),
    methods={LAYERS.id: LAYERS},
    routes={Task.LAYERS: (LAYERS.id,)},
    drawer="diffusers",
    model="painted_model:PaintedLayers",
    accepts=frozenset({"negative_prompt", "steps", "guidance_scale", "noise_source", "save_latent"}),
    batch_limit=2,
    pipelines=frozenset({"PaintedPipeline"}),
)  # fmt: skip
