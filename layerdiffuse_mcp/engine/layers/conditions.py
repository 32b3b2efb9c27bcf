"""Given pictures as layer methods are conditioned on them: latents behind the noisy one, or a control picture.

The reference puts an RGBA picture on mid-grey, resizes it, and encodes it with a random draw from the
autoencoder's posterior, taken from a global generator. Here the draw is a pure function of the result's
seed: a stream of the chosen noise source seeded with seed + 2^41, one draw a picture in the order of the
method's inputs. So a picture does not depend on what was drawn before it.

A picture of N pixels takes at most 16 N bytes here beside itself and 600 MB: what is done to each pixel alone is done
to some at a time, and what needs the whole picture at once is left to those that are no larger than what is drawn.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from layerdiffuse_mcp.api.choices import NoiseSource
from layerdiffuse_mcp.api.detail import Box, Tiling
from layerdiffuse_mcp.engine.device.cancellation import check
from layerdiffuse_mcp.engine.models.stable_diffusion import StableDiffusion
from layerdiffuse_mcp.engine.sampling.latent_space import to_sampled
from layerdiffuse_mcp.engine.sampling.noise import SOURCES
from layerdiffuse_mcp.engine.sampling.tiles import OnTile, Tiles, crop
from layerdiffuse_mcp.engine.types import DiffusionModel
from layerdiffuse_mcp.images.alpha import Bytes, Floats, on_grey
from layerdiffuse_mcp.images.resize import resized

CONDITION_STREAM = 1 << 41
SOME_PIXELS = 1 << 20


@dataclass(frozen=True)
class ConditionPictures:
    """The pictures that a batch is conditioned on, and how they are fitted to what is drawn.

    pictures: for each result its pictures (H, W, 3 or 4), uint8, any size, in the order of the method's inputs.
    seeds: of the results. width, height: what is drawn, multiples of the latent's downscale. tiling: how that is cut.
    on_tile: called whenever a tile of a picture is encoded.
    """

    pictures: Sequence[Sequence[Bytes]]
    seeds: Sequence[int]
    width: int
    height: int
    resize_mode: str
    noise_source: NoiseSource
    tiling: Tiling | None = None
    on_tile: OnTile | None = None


@torch.inference_mode()
def encode_condition(model: StableDiffusion, inputs: ConditionPictures) -> Tensor:
    """The latents that are joined behind the noisy one: (B, C * inputs, h, w), float32, as sampled."""
    shape = model.latent.shape(inputs.width, inputs.height)
    moments: dict[int, tuple[Tensor, Tensor]] = {}
    rows: list[Tensor] = []
    for pictures, seed in zip(inputs.pictures, inputs.seeds, strict=True):
        stream = SOURCES[inputs.noise_source](seed + CONDITION_STREAM)
        latents: list[Tensor] = []
        for picture in pictures:
            if id(picture) not in moments:
                grey = _on_grey(picture, inputs.width, inputs.height, inputs.resize_mode)
                moments[id(picture)] = encode_tiled(model, grey, inputs.tiling, inputs.on_tile)
            mean, std = moments[id(picture)]
            latents.append(to_sampled(mean + std * stream.draw(shape).to(mean), model.latent))
        rows.append(torch.cat(latents, dim=1))
    return torch.cat(rows)


def encode_tiled(
    model: DiffusionModel, picture: Floats, tiling: Tiling | None, on_tile: OnTile | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and deviation (1, C, h, w) of a picture (H, W, P), 0..1, as of `encode_image`, a tile at a time."""
    pixels, tiles = to_nchw(picture), Tiles.of((picture.shape[1], picture.shape[0]), tiling)

    def part(box: Box) -> Tensor:
        made = torch.cat(model.encode_image(crop(pixels, box)), dim=1)
        if on_tile is not None:
            on_tile()
        return made

    mean, std = tiles.blend(part, model.latent.downscale).chunk(2, dim=1)
    return mean, std


def control_picture(picture: Bytes, width: int, height: int, resize_mode: str) -> Tensor:
    """The picture that the SD1.5 control encoder sees: (1, 3, H, W), 0..1, on mid-grey."""
    return to_nchw(_on_grey(picture, width, height, resize_mode)).clamp(0, 1)


def _on_grey(picture: Bytes, width: int, height: int, resize_mode: str) -> Floats:
    """A picture on mid-grey, (height, width, 3), 0..1 but for what Lanczos adds."""
    grey = each_pixel(lambda some: on_grey(with_alpha(some)), picture, np.empty((*picture.shape[:2], 3), np.float32))
    return resized(grey, height, width, resize_mode)


def each_pixel(work: Callable[[Bytes], Any], picture: Bytes, into: Any) -> Any:
    """`work`, which sees (N, 1, C), of all pixels of a picture, some at a time: `into`, filled."""
    pixels, made = picture.reshape(-1, 1, picture.shape[2]), into.reshape(-1, 1, into.shape[2])
    for begin in range(0, len(pixels), SOME_PIXELS):
        check()
        some = slice(begin, begin + SOME_PIXELS)
        made[some] = work(pixels[some])
    return into


def with_alpha(picture: Bytes) -> Bytes:
    """(H, W, 3) becomes (H, W, 4), opaque; (H, W, 4) stays."""
    if picture.shape[-1] == 4:
        return picture
    return np.concatenate([picture, np.full_like(picture[..., :1], 255)], axis=-1)


def to_nchw(picture: Any) -> Tensor:
    """(H, W, C) float to (1, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)[None]))
