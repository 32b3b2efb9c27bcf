"""The LDM (single-file checkpoint) names of every weight, beside diffusers' and transformers' names.

    names = unet_key_map(unet.config)          # {"input_blocks.0.0.weight": "conv_in.weight", ...}
    origins = ldm_origins(tensors, names, "model.diffusion_model.")
    state = {key: origin.transform(tensors[origin.key]) for key, origin in origins.items()}

Base files, layer files, kohya LoRAs and the export (`ldm_export.py`) go through these maps. They are made from the few
numbers that shape a network (levels, blocks a level, transformer depth), so they hold for any width. Names as in
CompVis' latent-diffusion `openaimodel.py` and `diffusionmodules/model.py`, and OpenCLIP's `transformer.py`.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

# LDM name -> diffusers name inside one block
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
TRANSFORMER_ENDS = ("norm", "proj_in", "proj_out")
TRANSFORMER_BLOCK = (
    ("attn1.to_q", False),
    ("attn1.to_k", False),
    ("attn1.to_v", False),
    ("attn1.to_out.0", True),
    ("ff.net.0.proj", True),
    ("ff.net.2", True),
    ("attn2.to_q", False),
    ("attn2.to_k", False),
    ("attn2.to_v", False),
    ("attn2.to_out.0", True),
    ("norm1", True),
    ("norm2", True),
    ("norm3", True),
)
UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
VAE_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
OPEN_CLIP_ENDS = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _flat(tensor: Tensor) -> Tensor:
    return tensor[:, :, 0, 0] if tensor.ndim == 4 else tensor


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.t().contiguous()


def _third(tensor: Tensor, place: int) -> Tensor:
    return tensor.chunk(3)[place]


class Origin(NamedTuple):
    """Where a file keeps a weight: under which key, and what makes the module's tensor of it (a view where it can)."""

    key: str
    transform: Callable[[Tensor], Tensor] = _same


def unet_modules(config: Mapping[str, Any]) -> dict[str, str]:
    """{LDM module: diffusers module} of a UNet2DConditionModel's `config`, for every module that may hold weights.

    A resnet's `skip_connection` is listed for every resnet; only those that change the width have one.
    """
    levels = len(config["block_out_channels"])
    depths = _per_level(config["transformer_layers_per_block"], levels)
    layers = _per_level(config["layers_per_block"], levels)
    down_attention = ["CrossAttn" in kind for kind in config["down_block_types"]]
    up_attention = ["CrossAttn" in kind for kind in config["up_block_types"]]
    names = dict(UNET_ENDS)

    index = 1
    for level in range(levels):
        block = f"down_blocks.{level}"
        for layer in range(layers[level]):
            names.update(_under(f"input_blocks.{index}.0", f"{block}.resnets.{layer}", RESNET.items()))
            if down_attention[level]:
                names.update(_transformer(f"input_blocks.{index}.1", f"{block}.attentions.{layer}", depths[level]))
            index += 1
        if level < levels - 1:
            names[f"input_blocks.{index}.0.op"] = f"{block}.downsamplers.0.conv"
            index += 1

    names.update(_under("middle_block.0", "mid_block.resnets.0", RESNET.items()))
    names.update(_transformer("middle_block.1", "mid_block.attentions.0", depths[-1]))
    names.update(_under("middle_block.2", "mid_block.resnets.1", RESNET.items()))

    index = 0
    for up in range(levels):
        level = levels - 1 - up
        block = f"up_blocks.{up}"
        for layer in range(layers[level] + 1):
            names.update(_under(f"output_blocks.{index}.0", f"{block}.resnets.{layer}", RESNET.items()))
            if up_attention[up]:
                names.update(_transformer(f"output_blocks.{index}.1", f"{block}.attentions.{layer}", depths[level]))
            if layer == layers[level] and up < levels - 1:
                place = 2 if up_attention[up] else 1
                names[f"output_blocks.{index}.{place}.conv"] = f"{block}.upsamplers.0.conv"
            index += 1
    return names


def unet_key_map(config: Mapping[str, Any]) -> dict[str, str]:
    """{LDM key: diffusers key} of a UNet, without prefix; keys that this network does not have may be listed too."""
    without_bias = tuple(name for name, bias in TRANSFORMER_BLOCK if not bias)
    return _with_parameters(unet_modules(config), without_bias)


def controlnet_key_map(unet: Mapping[str, Any]) -> dict[str, str]:
    """{LDM key: diffusers key} of a ControlNet beside a UNet of this configuration, without prefix.

    Its encoder of pictures has a convolution at each even place; a 1x1 convolution follows each block.
    """
    levels = len(unet["block_out_channels"])
    names = {"input_hint_block.0": "controlnet_cond_embedding.conv_in"}
    names |= {f"input_hint_block.{2 * n + 2}": f"controlnet_cond_embedding.blocks.{n}" for n in range(6)}
    names["input_hint_block.14"] = "controlnet_cond_embedding.conv_out"
    outputs = 1 + sum(_per_level(unet["layers_per_block"], levels)) + levels - 1
    names |= {f"zero_convs.{n}.0": f"controlnet_down_blocks.{n}" for n in range(outputs)}
    names["middle_block_out.0"] = "controlnet_mid_block"
    return unet_key_map(unet) | _with_parameters(names, ())


def vae_key_map(config: Mapping[str, Any]) -> dict[str, str]:
    """{LDM key: diffusers key} of an AutoencoderKL, without the `first_stage_model.` prefix.

    The attention's q, k, v and proj_out are 1x1 convolutions in LDM files and linear in diffusers: see `ldm_origins`.
    """
    levels, layers = len(config["block_out_channels"]), int(config["layers_per_block"])
    names = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for side, ldm, count in (("encoder", "down", layers), ("decoder", "up", layers + 1)):
        for end, diffusers in (("conv_in", "conv_in"), ("norm_out", "conv_norm_out"), ("conv_out", "conv_out")):
            names[f"{side}.{end}"] = f"{side}.{diffusers}"
        for level in range(levels):
            # diffusers counts the decoder's blocks from the deepest level on, LDM from the picture on
            block = f"{side}.{ldm}_blocks.{level if ldm == 'down' else levels - 1 - level}"
            for layer in range(count):
                pair = (f"{side}.{ldm}.{level}.block.{layer}", f"{block}.resnets.{layer}")
                names.update(_under(*pair, VAE_RESNET.items()))
            names[f"{side}.{ldm}.{level}.{ldm}sample.conv"] = f"{block}.{ldm}samplers.0.conv"
        names.update(_under(f"{side}.mid.block_1", f"{side}.mid_block.resnets.0", VAE_RESNET.items()))
        names.update(_under(f"{side}.mid.block_2", f"{side}.mid_block.resnets.1", VAE_RESNET.items()))
        names.update(_under(f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0", VAE_ATTENTION.items()))
    return _with_parameters(names, ())


def ldm_origins(keys: Container[str], names: Mapping[str, str], prefix: str = "") -> dict[str, Origin]:
    """{diffusers key: where an LDM file keeps it} for those of `names` that are among `keys`.

    A VAE attention's 1x1 convolutions (c, c, 1, 1) become linear weights (c, c).
    """
    return {
        diffusers: Origin(prefix + ldm, _flat if is_flat(ldm) else _same)
        for ldm, diffusers in names.items()
        if prefix + ldm in keys
    }


def open_clip_origins(keys: Iterable[str], prefix: str = "") -> dict[str, Origin]:
    """{transformers key, without `text_model.`: where an OpenCLIP text encoder keeps it}.

    The joined q, k, v projection (3 x width, width) is split by views; `text_projection` (width, projection) becomes
    the weight of a linear layer (projection, width).
    """
    origins: dict[str, Origin] = {}
    for full in keys:
        key = full.removeprefix(prefix)
        if not full.startswith(prefix):
            continue
        if key.startswith("transformer.resblocks."):
            index, rest = key.removeprefix("transformer.resblocks.").split(".", 1)
            layer = f"encoder.layers.{index}."
            if rest.startswith("attn.in_proj_"):
                kind = rest.removeprefix("attn.in_proj_")
                for place, name in enumerate("qkv"):
                    origins[f"{layer}self_attn.{name}_proj.{kind}"] = Origin(full, partial(_third, place=place))
            else:
                module, kind = rest.rsplit(".", 1)
                origins[f"{layer}{OPEN_CLIP_LAYER.get(module, module)}.{kind}"] = Origin(full)
        elif key == "text_projection":
            origins["text_projection.weight"] = Origin(full, _transposed)
        elif key in OPEN_CLIP_ENDS:
            origins[OPEN_CLIP_ENDS[key]] = Origin(full)
    return origins


def is_flat(ldm_key: str) -> bool:
    return ".mid.attn_1." in ldm_key and ldm_key.endswith(".weight")


def _per_level(value: int | Sequence[int], levels: int) -> list[int]:
    return [value] * levels if isinstance(value, int) else list(value)


def _under(ldm: str, diffusers: str, pairs: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    return ((f"{ldm}.{a}", f"{diffusers}.{b}") for a, b in pairs)


def _transformer(ldm: str, diffusers: str, depth: int) -> dict[str, str]:
    names = {f"{ldm}.{end}": f"{diffusers}.{end}" for end in TRANSFORMER_ENDS}
    for d in range(depth):
        for name, _ in TRANSFORMER_BLOCK:
            names[f"{ldm}.transformer_blocks.{d}.{name}"] = f"{diffusers}.transformer_blocks.{d}.{name}"
    return names


def _with_parameters(modules: Mapping[str, str], without_bias: tuple[str, ...]) -> dict[str, str]:
    names: dict[str, str] = {}
    for ldm, diffusers in modules.items():
        names[f"{ldm}.weight"] = f"{diffusers}.weight"
        if not ldm.endswith(without_bias or ("\0",)):
            names[f"{ldm}.bias"] = f"{diffusers}.bias"
    return names
