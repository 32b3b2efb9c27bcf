"""The two networks of latent transparency, and how their files are read.

`TransparentDecoder` turns a decoded picture and its latent into alpha and colour; `OffsetEncoder` turns an RGBA
picture into the latent offset that hides its alpha inside an ordinary latent. Both are those of "Transparent Image
Layer Diffusion using Latent Transparency" (arXiv:2402.17113), under the key names of the released files:
`vae_transparent_decoder` (538 tensors) and `vae_transparent_encoder` (18 tensors).

The widths and the latent's channels are read from the file, so a narrow network of the same shape loads as the released
one does. How the networks are applied (eight views, padding, grey) is the business of `decode.py` and `encode.py`, not
known here.
"""

import math
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_blocks import (
    AttnDownBlock2D,
    AttnUpBlock2D,
    DownBlock2D,
    UNetMidBlock2D,
    UpBlock2D,
)
from torch import Tensor, nn

from layerdiffuse_mcp.engine.device.cancellation import check
from layerdiffuse_mcp.engine.weights.empty import without_weights
from layerdiffuse_mcp.engine.weights.tensor_file import TensorFile
from layerdiffuse_mcp.errors import LayerFileError
from layerdiffuse_mcp.hub.identify import identify

DECODER_WIDTHS = (32, 32, 64, 128, 256, 512, 512)
ENCODER_WIDTHS = (32, 64, 128, 256)
LATENT_CHANNELS = 4  # of the Stable Diffusion families
LATENT_DOWNSCALE = 8  # the decoder joins the latent after three halvings, and the encoder halves as often
ATTENTION_LEVELS = 3  # the deepest levels of the decoder also attend
HEAD_WIDTH = 8
NORM_GROUPS = 4
NORM_EPS = 1e-5

# The re-packed encoder of `LayerDiffuse_Diffusers` is stored before its output scale, the others after it.
UNSCALED_ENCODER_NAME = "ld_diffusers"
UNSCALED_ENCODER_SCALE = 300.0
# The size of the last layer (root mean square x square root of fan-in) that only the other kind of file can have.
SURELY_UNSCALED = 0.01
SURELY_SCALED = 10.0


class TransparentDecoder(nn.Module):
    """A U-Net of seven levels that joins the latent at one eighth of the picture's size.

    `widths` are the channels of the levels, from the picture's own size to 1/64 of it; all are multiples of 4, the
    last three of 8.
    """

    def __init__(self, widths: tuple[int, ...] = DECODER_WIDTHS, latent_channels: int = LATENT_CHANNELS) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.latent_channels = latent_channels
        last = len(widths) - 1
        common: dict[str, Any] = {"resnet_eps": NORM_EPS, "resnet_groups": NORM_GROUPS, "temb_channels": None}
        attending: dict[str, Any] = {**common, "attention_head_dim": HEAD_WIDTH}

        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.latent_conv_in = _zeroed(nn.Conv2d(latent_channels, widths[2], 1))

        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            shape: dict[str, Any] = {"in_channels": widths[max(level - 1, 0)], "out_channels": width, "num_layers": 2}
            if level <= last - ATTENTION_LEVELS:
                block = DownBlock2D(**shape, **common)
            else:
                block = AttnDownBlock2D(**shape, **attending, downsample_type="conv" if level < last else "none")
            self.down_blocks.append(block)

        self.mid_block = UNetMidBlock2D(widths[-1], **attending)

        self.up_blocks = nn.ModuleList()
        for level in range(last, -1, -1):
            shape = {
                "in_channels": widths[max(level - 1, 0)],
                "prev_output_channel": widths[min(level + 1, last)],
                "out_channels": widths[level],
                "num_layers": 3,
            }
            if level <= last - ATTENTION_LEVELS:
                block = UpBlock2D(**shape, **common, add_upsample=level > 0)
            else:
                block = AttnUpBlock2D(**shape, **attending)
            self.up_blocks.append(block)

        self.conv_norm_out = nn.GroupNorm(NORM_GROUPS, widths[0], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[0], 4, 3, padding=1)

    def forward(self, pixel: Tensor, latent: Tensor) -> Tensor:
        """Alpha and colour of pictures, not yet clipped.

        Args:
            pixel: (B, 3, H, W), 0 to 1, H and W multiples of 64.
            latent: (B, C, H/8, W/8).

        Returns:
            (B, 4, H, W): alpha, red, green, blue, about 0 to 1.
        """
        hidden = self.conv_in(pixel)
        skips = [hidden]
        for level, block in enumerate(self.down_blocks):
            if level == 3:
                hidden = hidden + self.latent_conv_in(latent)
            hidden, added = block(hidden)
            skips.extend(added)

        hidden = self.mid_block(hidden)

        for block in self.up_blocks:
            count = 3  # one residual block each
            hidden = block(hidden, tuple(skips[-count:]))
            del skips[-count:]
        return self.conv_out(nn.functional.silu(self.conv_norm_out(hidden)))


class OffsetEncoder(nn.Module):
    """Nine convolutions from [alpha, red, green, blue] to a latent offset at one eighth of the size.

    `widths` are the channels at the picture's size, 1/2, 1/4 and 1/8 of it. `output_scale` multiplies the result
    (see `load_offset_encoder`).
    """

    def __init__(
        self,
        widths: tuple[int, ...] = ENCODER_WIDTHS,
        output_scale: float = 1.0,
        latent_channels: int = LATENT_CHANNELS,
    ) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.output_scale = output_scale
        self.latent_channels = latent_channels
        layers: list[nn.Module] = [nn.Conv2d(4, widths[0], 3, padding=1), nn.SiLU()]
        for before, width in zip((None, *widths), widths, strict=False):
            if before is not None:
                layers += [nn.Conv2d(before, width, 3, padding=1, stride=2), nn.SiLU()]
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.SiLU()]
        self.blocks = nn.Sequential(*layers, _zeroed(nn.Conv2d(widths[-1], latent_channels, 3, padding=1)))

    def forward(self, argb: Tensor) -> Tensor:
        """The offset of `argb` (B, 4, H, W), 0 to 1.

        Returns:
            (B, C, H/8, W/8), in standard deviations of the VAE's posterior.
        """
        return self.blocks(argb) * self.output_scale


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with all parameters zero: what it joins begins training undisturbed."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def load_decoder(
    path: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> TransparentDecoder:
    """The transparent decoder of a safetensors file, ready for inference.

    Raises:
        ModelNotFound: there is no such file.
        LayerFileError: the file is damaged, holds numbers that are not finite, or is not a transparent decoder.
    """
    names = ["latent_conv_in.weight", *(f"down_blocks.{level}.resnets.0.conv1.weight" for level in range(7))]
    file = _opened(path, names, "transparent decoder")
    widths = tuple(file.shapes[name][0] for name in names[1:])
    if any(width % NORM_GROUPS for width in widths) or any(width % HEAD_WIDTH for width in widths[-ATTENTION_LEVELS:]):
        raise LayerFileError(f"{path.name}: a transparent decoder cannot have the widths {widths} found here.")
    with without_weights():
        decoder = TransparentDecoder(widths, file.shapes[names[0]][1])
    _fill(decoder, file, "transparent decoder", dtype, device)
    # convolutions of this network are measurably faster with the channels last
    return decoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def load_offset_encoder(
    path: Path, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> OffsetEncoder:
    """The offset encoder of a safetensors file, ready for inference.

    The output of the re-packed `ld_diffusers_..._vae_transparent_encoder` has to be multiplied by 300, that of all
    other files not. They are told apart by name; the size of the last layer catches a file under the wrong name.

    Raises:
        ModelNotFound: there is no such file.
        LayerFileError: the file is damaged, holds numbers that are not finite, is not an offset encoder, or its
            name and its weights contradict each other.
    """
    names = [f"blocks.{index}.weight" for index in (0, 4, 8, 12, 16)]
    file = _opened(path, names, "offset encoder")
    widths = tuple(file.shapes[name][0] for name in names[:4])
    scale = _encoder_scale(path, file["blocks.16.weight"])
    with without_weights():
        encoder = OffsetEncoder(widths, scale, file.shapes[names[4]][0])
    _fill(encoder, file, "offset encoder", dtype, device)
    return encoder


def _encoder_scale(path: Path, last_weight: Tensor) -> float:
    """300 or 1: what the output of this file has to be multiplied by."""
    weight = last_weight.float()
    size = weight.square().mean().sqrt().item() * math.sqrt(weight[0].numel())
    if UNSCALED_ENCODER_NAME in path.name.lower():
        if size > SURELY_SCALED:
            raise LayerFileError(
                f"{path.name} is named like the re-packed encoder, whose output is multiplied by 300, but its last "
                f"layer is too large for that ({size:.3g}, expected well below {SURELY_SCALED:g}). "
                "If it is the original encoder, name it vae_transparent_encoder.safetensors."
            )
        return UNSCALED_ENCODER_SCALE
    return UNSCALED_ENCODER_SCALE if 0 < size < SURELY_UNSCALED else 1.0


def _opened(path: Path, names: list[str], kind: str) -> TensorFile:
    """The file, refused if it is plainly of another kind: `names` are the weights that the widths are read from."""
    file = TensorFile(path, LayerFileError)
    missing = [name for name in names if len(file.shapes.get(name, ())) != 4]
    if missing:
        raise LayerFileError(
            f"{path.name} is not a {kind}: it has no {', '.join(missing[:3])}. "
            f"It looks like {identify(file.shapes, file.metadata).title}."
        )
    return file


def _fill(network: nn.Module, file: TensorFile, kind: str, dtype: torch.dtype, device: torch.device | str) -> None:
    """Put every tensor of the file into the network made on the `meta` device, or say which do not fit."""
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    wrong = [f"{name} is missing" for name in wanted if name not in file]
    wrong += [f"{name} is unknown" for name in file if name not in wanted]
    wrong += [
        f"{name} has shape {file.shapes[name]} instead of {shape}"
        for name, shape in wanted.items()
        if name in file and file.shapes[name] != shape
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise LayerFileError(f"{file.path.name} does not fit a {kind}: {'; '.join(wrong[:5])}{more}.")
    file.require_finite()
    state: dict[str, Tensor] = {}
    for name, tensor in file.items():
        check()
        state[name] = tensor.to(device, dtype)
    network.load_state_dict(state, assign=True)
    network.eval().requires_grad_(False)
