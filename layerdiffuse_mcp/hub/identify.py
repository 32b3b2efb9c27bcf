"""What a `.safetensors` file is, told from its keys and shapes alone; the same of a diffusers folder.

    kind = identify(header.shapes, header.metadata)
    kind.name, kind.title        # "flux", "a Flux model"

One table, `KINDS`: the first row whose marks are all there wins. A row that can be a base model names its family; every
other row exists so that an error can say what the user has given instead.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from layerdiffuse_mcp.errors import CheckpointError
from layerdiffuse_mcp.methods import Family

Shapes = Mapping[str, Sequence[int]]
UNET_PREFIX = "model.diffusion_model."
"""What the UNet's keys begin with in a single-file checkpoint."""


@dataclass(frozen=True)
class Kind:
    """A row of the table: a file is of this kind when it holds all marks, one of `any_of`, and passes `test`."""

    name: str
    title: str
    """With an article, to stand in a sentence: "a Flux model"."""
    marks: tuple[str, ...] = ()
    """Fragments, each of which must be part of some key."""
    any_of: tuple[str, ...] = ()
    test: Callable[[Shapes], bool] | None = None
    family: Family | None = None
    """Set when the file can serve as a base model."""


CONV_IN = UNET_PREFIX + "input_blocks.0.0.weight"
VECTOR = UNET_PREFIX + "label_emb.0.0.weight"
# the first transformer of an SD1.x / SD2.x UNet, and that of an SDXL base
FIRST_SD1 = UNET_PREFIX + "input_blocks.1.1."
FIRST_SDXL = UNET_PREFIX + "input_blocks.4.1."
MIDDLE = UNET_PREFIX + "middle_block.1."


def _channels(shapes: Shapes, key: str = CONV_IN) -> int:
    shape = shapes.get(key, ())
    return shape[1] if len(shape) > 1 else 0


def _linear(shapes: Shapes, block: str) -> bool:
    return len(shapes.get(block + "proj_in.weight", ())) == 2


def _is_sd2(shapes: Shapes) -> bool:
    return VECTOR not in shapes and _linear(shapes, FIRST_SD1)


def _is_sdxl(shapes: Shapes) -> bool:
    return VECTOR in shapes and FIRST_SDXL + "norm.weight" in shapes and FIRST_SD1 + "norm.weight" not in shapes


def _is_pruned(shapes: Shapes) -> bool:
    return _is_sdxl(shapes) and MIDDLE + "norm.weight" not in shapes


def _is_refiner(shapes: Shapes) -> bool:
    return VECTOR in shapes and UNET_PREFIX + "input_blocks.10.0.in_layers.0.weight" in shapes


def _offset_encoder(shapes: Shapes) -> bool:
    return all(f"blocks.{i}.weight" in shapes for i in range(0, 17, 2)) and len(shapes) == 18


KINDS: tuple[Kind, ...] = (
    # files of LayerDiffuse
    Kind("layer_sharing", "an SD 1.5 layer file (attention sharing)", ("hookers.layers.",)),
    Kind("layer_offsets", "an SDXL layer file (offsets)", any_of=("::lora::", "::diff::")),
    Kind("transparent_decoder", "a transparent VAE decoder", ("latent_conv_in.weight", "mid_block.")),
    Kind("transparent_encoder", "a transparent VAE encoder", ("blocks.16.weight",), test=_offset_encoder),
    # adapters
    Kind("lora", "a LoRA", any_of=("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")),
    Kind("lora", "a LoRA", any_of=(".lora_A.", ".lora_down.", "_lora.down.", ".lora.down.", ".lora_linear_")),
    Kind("lycoris", "a LyCORIS adapter", any_of=(".hada_w1_a", ".lokr_w1", "oft_blocks", ".dora_scale")),
    Kind("controlnet", "a ControlNet", any_of=("control_model.", "controlnet_cond_embedding.", "controlnet_blocks.")),
    Kind("ip_adapter", "an IP-Adapter", any_of=("ip_adapter.", "image_proj.")),
    Kind("motion", "an AnimateDiff motion module", ("motion_modules.",)),
    Kind("embedding", "a textual inversion embedding", any_of=("emb_params", "string_to_param")),
    # other families of base models
    Kind("flux", "a Flux model", ("double_blocks.0.", "single_blocks.0.")),
    Kind("flux", "a Flux model", ("single_transformer_blocks.0.", "x_embedder.weight", "context_embedder.weight")),
    Kind("sd3", "an SD3 model", ("joint_blocks.0.",)),
    Kind("sd3", "an SD3 model", ("transformer_blocks.0.norm1_context.", "pos_embed.proj.")),
    Kind("cascade", "a Stable Cascade model", any_of=("clip_txt_pooled_mapper.", "effnet_mapper.")),
    Kind("auraflow", "an AuraFlow model", ("double_layers.0.",)),
    Kind("pixart", "a PixArt model", ("adaln_single.linear.",)),
    Kind("qwen_image", "a Qwen-Image model", ("transformer_blocks.0.img_mod.", "txt_norm.")),
    Kind("wan", "a Wan video model", ("text_embedding.0.", "blocks.0.cross_attn.norm_q.")),
    Kind("lumina", "a Lumina or Z-Image model", ("cap_embedder.", "noise_refiner.0.")),
    Kind("hunyuan", "a HunyuanDiT model", ("mlp_t5.0.", "blocks.0.attn1.")),
    Kind("svd", "a Stable Video Diffusion model", ("time_stack.",)),
    # UNets of the Stable Diffusion line, single-file layout
    Kind("sdxl_refiner", "an SDXL refiner", (VECTOR,), test=_is_refiner),
    Kind("sdxl_inpaint", "an SDXL inpainting base", test=lambda s: _is_sdxl(s) and _channels(s) == 9),
    Kind("sdxl_edit", "an SDXL instruct-pix2pix base", test=lambda s: _is_sdxl(s) and _channels(s) == 8),
    Kind("sdxl_pruned", "a pruned SDXL base (SSD-1B, Vega)", test=_is_pruned),
    Kind("sdxl", "an SDXL base", test=_is_sdxl, family="sdxl"),
    Kind("sd2", "an SD 2.x base", test=_is_sd2),
    Kind("unclip", "an unCLIP base", (VECTOR,)),
    Kind("sd15_inpaint", "an SD 1.5 inpainting base", test=lambda s: _channels(s) == 9),
    Kind("sd15_edit", "an SD 1.5 instruct-pix2pix base", test=lambda s: _channels(s) == 8),
    Kind("sd15", "an SD 1.5 base", (CONV_IN, FIRST_SD1), family="sd15"),
    # parts of a base
    Kind(
        "unet", "a UNet alone, in diffusers names", ("time_embedding.linear_1.", "down_blocks.0.resnets.0.", "conv_in.")
    ),
    Kind("vae", "a VAE alone", ("first_stage_model.decoder.",)),
    Kind("vae", "a VAE alone", ("encoder.down.0.block.0.", "decoder.up.0.block.0.")),
    Kind(
        "vae", "a VAE alone, in diffusers names", ("encoder.down_blocks.0.resnets.0.", "decoder.up_blocks.0.resnets.0.")
    ),
    Kind("text_encoder", "a text encoder alone", any_of=("text_model.encoder.layers.0.", "transformer.resblocks.0.")),
    Kind("text_encoder", "a T5 text encoder alone", ("encoder.block.0.layer.0.SelfAttention.",)),
    Kind("language_model", "a language model", ("model.layers.0.self_attn.",)),
    Kind("upscaler", "an upscaler", any_of=("RRDB_trunk.", ".RDB1.conv1.", ".rdb1.conv1.")),
)
UNKNOWN = Kind("unknown", "a file of a kind that is not known here")


def identify(shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str] | None = None) -> Kind:
    """The kind of file that has tensors of these names and shapes; `UNKNOWN` when no row fits.

    `metadata` is the header's; kohya's trainer writes `ss_network_module` there, which settles a LoRA of unusual keys.
    """
    for kind in KINDS:
        if _fits(kind, shapes):
            return kind
    if metadata and "ss_network_module" in metadata:
        return next(kind for kind in KINDS if kind.name == "lora")
    return UNKNOWN


def _fits(kind: Kind, shapes: Shapes) -> bool:
    def held(mark: str) -> bool:
        return mark in shapes or any(mark in key for key in shapes)

    return (
        all(held(mark) for mark in kind.marks)
        and (not kind.any_of or any(held(mark) for mark in kind.any_of))
        and (kind.test is None or kind.test(shapes))
    )


PIPELINES: dict[str, Family] = {
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionImg2ImgPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
}
"""The pipelines that a diffusers folder's `model_index.json` may name."""


def folder_family(name: str, pipeline: str, unet: Mapping[str, Any]) -> Family:
    """The family of the base in the diffusers folder `name`.

    `pipeline` is the class that its `model_index.json` names, `unet` the configuration in `unet/config.json`. Raises
    `CheckpointError` when layer models do not fit the base, saying what it is.
    """
    family = PIPELINES.get(pipeline)
    problem = None
    if family is None:
        problem = f"is a {pipeline} folder"
    elif unet.get("in_channels", 4) != 4:
        problem = f"has a UNet of {unet['in_channels']} input channels, as inpainting and editing bases have"
    elif family == "sd15" and (unet.get("use_linear_projection") or unet.get("cross_attention_dim") == 1024):
        problem = "is an SD 2.x base"
    elif family == "sdxl" and len(unet.get("block_out_channels", (0, 0, 0))) != 3:
        problem = "is an SDXL refiner"
    if problem or family is None:
        raise CheckpointError(
            f"{name} {problem}, and layer models do not fit it; use an SD 1.5 or SDXL base with 4 input channels."
        )
    return family
