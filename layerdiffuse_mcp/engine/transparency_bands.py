"""The transparent decoder on a CPU, band by band: the numbers of `TransparentDecoder`, sooner and in less memory.

    run = BandedDecoder(decoder)
    argb = run(pixel, latent)                                   # as decoder(pixel, latent), to float rounding

Every feature map is kept as bands of rows that fit a core's cache. A step norms a band and the rows next to it, applies
SiLU, convolves and adds the residual while the band is in the cache, and takes the statistics of what it wrote, which
the next norm needs of the whole map. So nothing is cut into tiles that could show seams, a map is read and written once
a step, and beside the maps themselves there is memory for one band only.

What is computed otherwise than by the modules, with the same result to rounding: the 3x3 convolution of a map enlarged
two times is four 2x2 convolutions of the small map (2.25 times fewer products); a norm and a shortcut read hidden map
and skip side by side instead of joined; attention keeps the scores of few heads at a time.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from layerdiffuse_mcp.engine.cancellation import check
from layerdiffuse_mcp.engine.transparency_networks import HEAD_WIDTH, NORM_EPS, NORM_GROUPS, TransparentDecoder

BAND_BYTES = 2**22  # of a band in float32, all pictures of a batch together
SCORE_BYTES = 2**20  # of the attention scores held at once


class Map:
    """A feature map as bands of rows, each (N, rows, W, C), with the statistics of each by picture and channel.

    rows: of a band, by the height of a map; the same for all maps that are made of one another.
    """

    def __init__(self, rows: Mapping[int, int]) -> None:
        self.rows = rows
        self.bands: list[Tensor] = []
        self.moments: list[Tensor] = []

    @classmethod
    def of(cls, whole: Tensor, rows: Mapping[int, int]) -> "Map":
        """A map of (N, H, W, C), in bands of `rows[H]`."""
        result = cls(rows)
        for band in whole.split(rows[whole.shape[1]], dim=1):
            result.append(band)
        return result

    @property
    def height(self) -> int:
        return sum(band.shape[1] for band in self.bands)

    def append(self, band: Tensor) -> None:
        self.bands.append(band)
        unused = torch.zeros(band.shape[3]), torch.ones(band.shape[3])  # float32: the precision of the statistics
        pairs = [torch.batch_norm_update_stats(one.movedim(2, 0)[None], *unused, 0.0) for one in band]
        self.moments.append(torch.stack([torch.stack(pair) for pair in pairs], dim=1).double())

    def whole(self) -> Tensor:
        """(N, H, W, C)."""
        return self.bands[0] if len(self.bands) == 1 else torch.cat(self.bands, dim=1)

    def spread(self) -> Tensor:
        """Mean and variance of the whole map by picture and channel, (2, N, C), float64."""
        means, variances = torch.stack(self.moments, dim=1)
        rows = means.new_tensor([band.shape[1] for band in self.bands])[:, None, None]
        share = rows / rows.sum()
        mean = (share * means).sum(0)
        return torch.stack([mean, (share * (variances + (means - mean).square())).sum(0)])


class BandedDecoder:
    """`TransparentDecoder` for inference, of the same weights; made anew for each picture, as it is cheap to make.

    Several threads may call it at once, with pictures of any sizes: a call changes nothing here.
    """

    def __init__(self, decoder: TransparentDecoder) -> None:
        self.decoder = decoder
        self.dtype = decoder.conv_in.weight.dtype
        self.folded = {
            id(conv): _fold(conv.weight)
            for block in decoder.up_blocks
            for conv in [up.conv for up in getattr(block, "upsamplers", None) or ()]
        }

    def __call__(self, pixel: Tensor, latent: Tensor) -> Tensor:
        """Alpha and colour, as `TransparentDecoder.forward`: (B, 3, H, W) and (B, 4, H/8, W/8) to (B, 4, H, W)."""
        decoder = self.decoder
        rows = _rows(pixel.shape, decoder.widths)

        hidden = self._convolved([Map.of(pixel.movedim(1, 3), rows)], decoder.conv_in)
        skips = [hidden]
        for level, block in enumerate(decoder.down_blocks):
            if level == 3:
                joined = decoder.latent_conv_in(latent).movedim(1, 3)
                hidden = Map.of(hidden.whole() + joined, rows)
            for resnet, attention in _layers(block):
                hidden = self._attended(self._residual([hidden], resnet), attention)
                skips.append(hidden)
            for down in getattr(block, "downsamplers", None) or ():
                hidden = self._convolved([hidden], down.conv)
                skips.append(hidden)

        middle: Any = decoder.mid_block
        hidden = self._residual([hidden], middle.resnets[0])
        hidden = self._attended(hidden, middle.attentions[0])
        hidden = self._residual([hidden], middle.resnets[1])

        for block in decoder.up_blocks:
            for resnet, attention in _layers(block):
                hidden = self._attended(self._residual([hidden, skips.pop()], resnet), attention)
            for up in getattr(block, "upsamplers", None) or ():
                hidden = self._enlarged(hidden, up.conv)
        return self._convolved([hidden], decoder.conv_out, decoder.conv_norm_out).whole().movedim(3, 1)

    def _residual(self, sources: list[Map], resnet: Any) -> Map:
        hidden = self._convolved(sources, resnet.conv1, resnet.norm1)
        return self._convolved([hidden], resnet.conv2, resnet.norm2, (sources, resnet.conv_shortcut))

    def _convolved(
        self, sources: list[Map], conv: Any, norm: Any = None, residual: tuple[list[Map], Any] | None = None
    ) -> Map:
        """conv(silu(norm(sources joined))) + shortcut(residual joined), band by band."""
        affine = _affine(sources, norm) if norm else None
        stride: int = conv.stride[0]
        height = sources[0].height // stride
        result, top = Map(sources[0].rows), 0
        for index in range(-(-height // result.rows[height])):
            rows = min(result.rows[height], height - top)
            seen = self._window(sources, top * stride - 1, (top + rows - 1) * stride + 2, affine)
            made = F.conv2d(seen, conv.weight, conv.bias, stride, (0, 1)).movedim(1, 3).contiguous()
            if residual:
                _add(made, [source.bands[index] for source in residual[0]], residual[1])
            result.append(made)
            top += rows
        return result

    def _enlarged(self, source: Map, conv: Any) -> Map:
        """conv(source enlarged two times), by four convolutions of the source."""
        count, _, width, _ = source.bands[0].shape
        height = 2 * source.height
        result, top = Map(source.rows), 0
        while top < height:
            rows = min(result.rows[height], height - top)
            seen = self._window([source], top // 2 - 1, (top + rows) // 2 + 1)
            made = seen.new_empty(count, rows // 2, 2, width, 2, conv.out_channels)
            for (down, right), weight in self.folded[id(conv)].items():
                part = F.conv2d(seen[:, :, down : down + rows // 2 + 1], weight, conv.bias, 1, (0, 1)).movedim(1, 3)
                made[:, :, down, :, right] = part[:, :, right : right + width]
            result.append(made.view(count, rows, 2 * width, -1))
            top += rows
        return result

    def _window(self, sources: list[Map], start: int, stop: int, affine: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The rows from `start` to `stop` of the sources joined, normed and through SiLU if `affine` says how.

        Rows outside of the picture are zero. (N, C, stop - start, W), the channels last, in the decoder's type.
        """
        check()
        count, _, width, _ = sources[0].bands[0].shape
        channels = sum(source.bands[0].shape[3] for source in sources)
        height = sources[0].height
        seen = torch.empty(count, stop - start, width, channels, dtype=torch.float32 if affine else self.dtype)
        begin = 0
        for source in sources:
            end = begin + source.bands[0].shape[3]
            for place, band in _between(source.bands, start, stop):
                into = seen[:, place : place + band.shape[1], :, begin:end]
                if affine:
                    scale, shift = (values[:, :, :, begin:end] for values in affine)
                    torch.addcmul(shift, band, scale, out=into)
                else:
                    into.copy_(band)
            begin = end
        if affine:
            F.silu(seen, inplace=True)
        seen[:, : max(-start, 0)] = 0
        seen[:, height - start :] = 0
        return seen.to(self.dtype).movedim(3, 1)

    def _attended(self, source: Map, attention: Any) -> Map:
        if attention is None:
            return source
        scale, shift = _affine([source], attention.group_norm)
        whole = source.whole()
        tokens = torch.addcmul(shift, whole, scale).to(self.dtype).flatten(1, 2)
        query, key, value = (
            layer(tokens).unflatten(2, (-1, HEAD_WIDTH)).transpose(1, 2).flatten(0, 1)
            for layer in (attention.to_q, attention.to_k, attention.to_v)
        )
        mixed = _attention(query, key, value).unflatten(0, (len(tokens), -1)).permute(0, 3, 1, 2)
        return Map.of(attention.to_out[0](mixed.flatten(2)).view_as(whole).add_(whole), source.rows)


def _rows(shape: torch.Size, widths: tuple[int, ...]) -> Mapping[int, int]:
    """Rows of a band, by the height of a level's maps, for pictures of a shape (N, C, H, W): even, and two at least."""
    count, _, height, width = shape
    fit = {level: BAND_BYTES // (4 * count * channels * (width >> level)) for level, channels in enumerate(widths)}
    return {height >> level: max(2, rows // 2 * 2) for level, rows in fit.items()}


def _layers(block: Any) -> Iterator[tuple[Any, Any]]:
    """Residual block and attention (or None) of each layer of a diffusers block."""
    yield from zip(block.resnets, getattr(block, "attentions", None) or [None] * len(block.resnets), strict=True)


def _between(bands: list[Tensor], start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
    """The rows from `start` to `stop` that exist, as (place after `start`, rows)."""
    top = 0
    for band in bands:
        first, last = max(start, top), min(stop, top + band.shape[1])
        if first < last:
            yield first - start, band[:, first - top : last - top]
        top += band.shape[1]


def _affine(sources: list[Map], norm: Any) -> tuple[Tensor, Tensor]:
    """The group norm of the sources joined as a scale and a shift, each (N, 1, 1, C), float32."""
    means, variances = torch.cat([source.spread() for source in sources], dim=2).unflatten(2, (NORM_GROUPS, -1))
    mean = means.mean(2, keepdim=True)
    variance = (variances + (means - mean).square()).mean(2, keepdim=True)
    scale = norm.weight.double().view(NORM_GROUPS, -1) / (variance + NORM_EPS).sqrt()
    shift = norm.bias.double().view(NORM_GROUPS, -1) - mean * scale
    return scale.flatten(1)[:, None, None].float(), shift.flatten(1)[:, None, None].float()


def _add(made: Tensor, sources: list[Tensor], shortcut: Any) -> None:
    """Add the joined sources to `made`, through the 1x1 convolution `shortcut` if there is one."""
    if shortcut is None:
        made.add_(sources[0])
        return
    flat, begin = made.view(-1, made.shape[3]), 0
    made.add_(shortcut.bias)
    for source in sources:
        end = begin + source.shape[3]
        flat.addmm_(source.reshape(-1, end - begin), shortcut.weight[:, begin:end, 0, 0].T)
        begin = end


def _fold(weight: Tensor) -> dict[tuple[int, int], Tensor]:
    """The 2x2 kernels of a 3x3 kernel (O, I, 3, 3) after an enlargement, by row and column of the pixel made."""

    def halves(kernel: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        first, second, third = kernel.unbind(dim)
        return torch.stack([first, second + third], dim), torch.stack([first + second, third], dim)

    return {
        (down, right): part.contiguous(memory_format=torch.channels_last)
        for down, rows in enumerate(halves(weight, 2))
        for right, part in enumerate(halves(rows, 3))
    }


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of (heads, T, 8) each, as (heads, 8, T).

    The fused kernel of torch takes half as long again at this head width; so here the scores of few heads at a time.
    """
    heads, tokens, width = query.shape
    query = query * width**-0.5
    keys, values = key.transpose(1, 2).contiguous(), value.transpose(1, 2).contiguous()
    rows = min(tokens, max(64, SCORE_BYTES // (4 * tokens)))
    group = max(1, SCORE_BYTES // (4 * tokens * rows))
    result = torch.empty_like(values)
    for head in range(0, heads, group):
        here = slice(head, head + group)
        for top in range(0, tokens, rows):
            check()
            scores = torch.bmm(query[here, top : top + rows], keys[here]).softmax(2)
            result[here, :, top : top + rows] = torch.bmm(values[here], scores.transpose(1, 2))
    return result
