"""Transparent latents without a drawing: a saved one to a picture, a picture to one.

pixels = decode_latent(model, saved, meter)
latent = encode_picture(model, rgba, meter)
"""

import numpy as np
from torch import Tensor

from layerdiffuse_mcp.engine.pipeline.progress import DECODED_VIEW, Meter
from layerdiffuse_mcp.engine.transparency.codec import codec_of
from layerdiffuse_mcp.engine.transparency.decode import to_rgb8
from layerdiffuse_mcp.engine.transparency.encode import ENCODERS
from layerdiffuse_mcp.engine.transparency.latent_file import SavedLatent
from layerdiffuse_mcp.engine.types import DiffusionModel
from layerdiffuse_mcp.images.alpha import Bytes


def decode_latent(model: DiffusionModel, saved: SavedLatent, meter: Meter) -> Bytes:
    """The picture of a saved latent: (H, W, 4), uint8, straight alpha."""
    codec = codec_of(model)
    meter.expect(codec.views * DECODED_VIEW)
    steps = meter.steps("decoding", codec.views, DECODED_VIEW)
    return codec.decode(saved.latent, steps.next)[: saved.height, : saved.width]


def decode_plain(model: DiffusionModel, saved: SavedLatent) -> Bytes:
    """The picture of a saved latent as the autoencoder alone sees it, alpha unread: (H, W, 3), uint8."""
    return to_rgb8(model.decode_latents(saved.latent[None])[0])[: saved.height, : saved.width]


def encode_picture(model: DiffusionModel, rgba: Bytes, meter: Meter) -> Tensor:
    """The transparent latent of a picture (H, W, 4), uint8: (C, h, w), float32, as sampled, on the CPU.

    Where its sides are no multiples of the latent's downscale, transparent pixels continue it at the right and the
    bottom.
    """
    height, width = rgba.shape[:2]
    padded_width, padded_height = model.latent.padded(width, height)
    meter.expect(ENCODERS)
    steps = meter.steps("encoding", ENCODERS)
    meter.report(f"encoding {width}x{height} pixels")
    padded = np.pad(rgba, ((0, padded_height - height), (0, padded_width - width), (0, 0)))
    return codec_of(model).encode(padded, steps.next)[0].cpu()
