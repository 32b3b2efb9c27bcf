"""RGBA to a latent and back, as a base's family does it.

    codec = codec_of(model)
    latent = codec.encode(rgba)
    rgba = codec.decode(latent)

Either a pair of networks beside the autoencoder (their files, and which latent the decoder sees, are the card's
`Codec`), or an autoencoder of four channels (the card's `latent.pictures`).
"""

from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from layerdiffuse_mcp.api.detail import Box, Tiling
from layerdiffuse_mcp.engine.models.model import Model
from layerdiffuse_mcp.engine.sampling.latent_space import to_sampled, to_unscaled
from layerdiffuse_mcp.engine.sampling.tiles import Tiles, crop
from layerdiffuse_mcp.engine.transparency.decode import VIEWS, decode, to_rgb8, to_rgba8
from layerdiffuse_mcp.engine.transparency.encode import transparent_latent
from layerdiffuse_mcp.engine.transparency.networks import (
    OffsetEncoder,
    TransparentDecoder,
    load_decoder,
    load_offset_encoder,
)
from layerdiffuse_mcp.engine.types import AlphaCodec, DiffusionModel
from layerdiffuse_mcp.errors import InvalidRequest, LayerFileError
from layerdiffuse_mcp.families.spec import Codec, LatentFormat
from layerdiffuse_mcp.images.alpha import Bytes, to_float

HIDDEN = 1e-3
"""What colour below full transparency counts, where tiles overlap: it is seen by nobody, and must not turn black."""


def codec_of(model: DiffusionModel) -> AlphaCodec:
    """What a base's pictures with alpha become latents by; raises `InvalidRequest` where it has no such thing."""
    if model.spec.codec is not None:
        return TransparencyNetworks(cast(Model, model), model.spec.codec)
    if model.latent.pictures == 4:
        return RgbaAutoencoder(model)
    raise InvalidRequest(f"{model.spec.title} models have no transparent latents; name another model.")


class RgbaAutoencoder:
    """An autoencoder whose pictures are RGBA with straight alpha, all four channels alike."""

    views: ClassVar[int] = 1

    def __init__(self, model: DiffusionModel) -> None:
        self._model = model

    def load(self) -> None:
        """As of `AlphaCodec`: the base has it."""

    def encode(self, rgba: Bytes, on_network: Callable[[], None] | None = None, tiling: Tiling | None = None) -> Tensor:
        """As of `AlphaCodec`: the mean, so nothing is random."""
        pixels = torch.from_numpy(to_float(rgba)).movedim(-1, 0)[None]

        def part(box: Box) -> Tensor:
            mean, _ = self._model.encode_image(crop(pixels, box))
            if on_network is not None:
                on_network()
            return mean

        tiles = Tiles.of((rgba.shape[1], rgba.shape[0]), tiling)
        return to_sampled(tiles.blend(part, self._model.latent.downscale), self._model.latent)

    def decode(
        self, latent: Tensor, on_view: Callable[[int], None] | None = None, tiling: Tiling | None = None
    ) -> Bytes:
        """As of `AlphaCodec`, in one view."""

        def part(box: Box) -> Tensor:
            pixels = self._model.decode_latents(crop(latent, box, self._model.latent.downscale)[None])[0]
            if on_view is not None:
                on_view(1)
            return pixels

        return to_rgb8(pictured(self._model, latent, tiling).blend(part))


class TransparencyNetworks:
    """LayerDiffuse's encoder and decoder of a base; their files are read when they are first used.

    Its methods raise `ModelNotFound` or `LayerFileError` when a file is absent or damaged.
    """

    views: ClassVar[int] = len(VIEWS)

    def __init__(self, model: Model, files: Codec) -> None:
        self._model = model
        self._files = files

    def load(self) -> None:
        """Read both files, where they are not in memory."""
        _ = self.decoder, self.encoder

    @property
    def encoder(self) -> OffsetEncoder:
        """The offset encoder, on the device."""
        return self._read(self._files.encoder, load_offset_encoder)

    @property
    def decoder(self) -> TransparentDecoder:
        """The transparent decoder, on the device."""
        return self._read(self._files.decoder, load_decoder)

    def encode(self, rgba: Bytes, on_network: Callable[[], None] | None = None, tiling: Tiling | None = None) -> Tensor:
        """See `transparent_latent`: (H, W, 4), uint8, to (1, C, h, w), float32, as sampled."""
        latent = transparent_latent(self._model.vae, self.encoder, rgba, on_network, tiling)
        return to_sampled(latent, self._model.latent)

    def decode(
        self, latent: Tensor, on_view: Callable[[int], None] | None = None, tiling: Tiling | None = None
    ) -> Bytes:
        """A sampled latent (C, h, w) as RGBA (H, W, 4), uint8, straight alpha; see `AlphaCodec`.

        Tiles are laid together with their colour weighted by alpha, as what is seen through each other.
        """
        tiles, downscale = pictured(self._model, latent, tiling), self._model.latent.downscale
        if len(tiles.boxes) == 1:
            return to_rgba8(self._decoded(latent, on_view))[0]

        def part(box: Box) -> Tensor:
            alpha, colour = self._decoded(crop(latent, box, downscale), on_view).clamp(0, 1).split([1, 3], dim=1)
            return torch.cat([alpha, colour * (alpha + HIDDEN)], dim=1)

        alpha, colour = tiles.blend(part).split([1, 3], dim=1)
        return to_rgba8(torch.cat([alpha, colour.div_(alpha + HIDDEN)], dim=1))[0]

    def _decoded(self, latent: Tensor, on_view: Callable[[int], None] | None) -> Tensor:
        """See `decode.decode`: (1, 4, H, W), alpha first."""
        reported = 0

        def report(done: int, _: int) -> None:
            nonlocal reported
            if on_view is not None:
                on_view(done - reported)
            reported = done

        pixel = self._model.decode_latents(latent[None], self._files.clipped)
        latent_seen = decoder_latent(latent[None].to(pixel), self._files, self._model.latent)
        return decode(self.decoder, pixel, latent_seen, on_view=report)

    def _read(self, name: str, load: Callable[..., Any]) -> Any:
        components = self._model.components
        components.onload("pictures")
        dtype, device = components.dtype("pictures"), components.placement.device
        network = components.read(name, lambda path: load(path, dtype, device), phase="pictures")
        if network.latent_channels != (channels := self._model.latent.channels):
            raise LayerFileError(
                f"{name} is for latents of {network.latent_channels} channels, and those of {self._model.name} have "
                f"{channels}. Use the file that was published for {self._model.spec.title}."
            )
        return network


def pictured(model: DiffusionModel, latent: Tensor, tiling: Tiling | None) -> Tiles:
    """The tiles of the picture that a latent (C, h, w) stands for."""
    height, width = (side * model.latent.downscale for side in latent.shape[-2:])
    return Tiles.of((width, height), tiling)


def decoder_latent(latent: Tensor, codec: Codec, form: LatentFormat) -> Tensor:
    """What the decoder is shown of sampled latents (B, C, h, w): see `Codec.sees`."""
    return to_unscaled(latent, form) if codec.sees == "unscaled" else latent
