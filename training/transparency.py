"""What the offset and the transparent decoder are trained for; the two stages are `offset.py` and `decoder.py`.

    latent = mean + deviation * offset          the picture on mid-grey, encoded; the offset hides its alpha
    [alpha, rgb] = decoder(VAE-decoded pixels in 0..1, latent)

The offset is held at a small step wherever nothing shows, so that transparent latents stay near the ordinary ones that
the base knows; `wanted` says which.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from layerdiffuse_mcp.engine.transparency.networks import OffsetEncoder, TransparentDecoder
from training import mixing
from training.common import device
from training.padding import spread_colour

DECODER_WIDTHS = (16, 16, 32, 32, 40, 48, 48)
ENCODER_WIDTHS = (16, 32, 48, 64)
# where in the latent (its deviation is 1) a transparent place is moved to: the direction in which this autoencoder's
# pixels change least, measured with random ones; the other rows, at right angles to it, say where in the place
EMPTY = 1.4
DETAIL = 0.8
DIRECTION = (-0.29, 0.56, -0.5, 0.59)
INNER, CORNERS = [5, 6, 9, 10], [0, 3, 12, 15]  # of the 4 x 4 blocks under a latent pixel
AGAIN_FIRST = ("decoder_again", "decoder")  # the decoder's runs, the latest first
OFFSET_SCALE = 120.0  # the posterior is narrow (0.2% of the latents' spread), so offsets are large; folded in by `load`


def offset_encoder() -> OffsetEncoder:
    torch.manual_seed(4)
    encoder = OffsetEncoder(ENCODER_WIDTHS, OFFSET_SCALE)
    for layer in encoder.blocks:
        if isinstance(layer, torch.nn.Conv2d):
            # torch's default lets nine SiLU layers without norms die out, and the offset would never be found
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            layer.weight.data *= 1.3
    encoder.blocks[-1].weight.data *= 0.5
    return encoder


def transparent_decoder() -> TransparentDecoder:
    torch.manual_seed(4)
    return TransparentDecoder(DECODER_WIDTHS)


def offset_input(rgba: torch.Tensor) -> torch.Tensor:
    """What the offset encoder sees of cut-outs (B, 4, H, W): alpha, and the colour spread over the whole picture."""
    return torch.cat([rgba[:, 3:], spread_colour(rgba[:, :3], rgba[:, 3:])], 1)


def hide(vae: AutoencoderKL, encoder: OffsetEncoder, rgba: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The unscaled transparent latents of cut-outs (B, 4, H, W), and how far each was moved from the VAE's own."""
    with torch.no_grad():
        posterior = vae.encode(mixing.flattened(rgba) * 2 - 1).latent_dist
    moved = posterior.std.float() * encoder(offset_input(rgba)).float()
    return posterior.mean.float() + moved, moved


def directions() -> torch.Tensor:
    """(4, 4): what each of the four facts of `wanted` moves the latent by."""
    torch.manual_seed(11)
    basis, _ = torch.linalg.qr(torch.cat([torch.tensor([DIRECTION]).T, torch.randn(4, 3)], 1))
    along = basis[:, :1] * torch.sign(basis[0, 0] * DIRECTION[0])
    return torch.cat([EMPTY * along, DETAIL * basis[:, 1:]], 1)


def wanted(rgba: torch.Tensor) -> torch.Tensor:
    """The offset to aim for (B, 4, H/8, W/8), in scaled latents, of four facts about each latent pixel's 8 x 8 pixels:
    how empty they are; how much emptier than that are their inner 4 x 4, and their corners; and how much of them is
    neither clear nor opaque.

    All four stay as they are when the picture is turned or mirrored: the decoder looks at it in eight views, and would
    read "empty on the left" wrong in most. An opaque grey and an empty grey then differ in the latent, what shows
    keeps its own latent, and the base has but one thing to learn. Left alone, so small a pair of networks finds no use
    for the offset; and a small step (0.3) was lost among the picture's own latents: grey parts became holes.
    """
    alpha = rgba[:, 3:]
    blocks = F.pixel_unshuffle(1 - F.avg_pool2d(alpha, 2), 4)  # 4 x 4 blocks of 2 x 2 pixels
    empty = blocks.mean(1)
    inner, corners = blocks[:, INNER].mean(1) - empty, blocks[:, CORNERS].mean(1) - empty
    soft = F.avg_pool2d(4 * alpha * (1 - alpha), 8)[:, 0]
    return torch.einsum("cf,bfhw->bchw", directions().to(rgba), torch.stack([empty, inner, corners, soft], 1))


def pixels(vae: AutoencoderKL, latent: torch.Tensor) -> torch.Tensor:
    """What the VAE decodes, 0..1."""
    return (vae.decode(latent).sample.float() / 2 + 0.5).clamp(0, 1)


def load_offset(work: Path) -> OffsetEncoder:
    """The offset encoder as its own stage left it (EMA weights), to be trained on."""
    encoder = offset_encoder()
    encoder.load_state_dict(torch.load(work / "offset.pt", map_location="cpu", weights_only=True)["average"])
    return encoder


def pair(encoder: OffsetEncoder) -> torch.nn.ModuleDict:
    """The two networks that the decoder's stage trains together."""
    return torch.nn.ModuleDict({"encoder": encoder, "decoder": transparent_decoder()})


def load_pair(work: Path) -> tuple[OffsetEncoder, TransparentDecoder]:
    """The trained offset encoder, its scale folded in, and transparent decoder (EMA weights), frozen."""
    both = pair(offset_encoder())
    file = next(file for name in AGAIN_FIRST if (file := work / f"{name}.pt").exists())
    both.load_state_dict(torch.load(file, map_location="cpu", weights_only=True)["average"])
    both.requires_grad_(False).eval().to(device())
    encoder, decoder = both["encoder"], both["decoder"]
    encoder.blocks[-1].weight *= encoder.output_scale
    encoder.blocks[-1].bias *= encoder.output_scale
    encoder.output_scale = 1.0
    return encoder, decoder
