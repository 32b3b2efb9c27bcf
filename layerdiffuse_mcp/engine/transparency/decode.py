"""Latent transparency, the way out: from a decoded picture and its latent to RGBA.

    decoder = load_decoder(path)
    decoded = decode(decoder, pixels, latent)                   # which latent is seen: see `codec.py`
    rgba = to_rgba8(decoded)                                    # straight alpha, uint8

The method is that of arXiv:2402.17113; numbers follow the authors' implementation. No sampler and no file of the
result is known here.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from layerdiffuse_mcp.engine.device import threads
from layerdiffuse_mcp.engine.device.memory import memory_free
from layerdiffuse_mcp.engine.transparency.banded_decoder import BandedDecoder
from layerdiffuse_mcp.engine.transparency.networks import LATENT_DOWNSCALE, TransparentDecoder
from layerdiffuse_mcp.errors import ImageError, ModelError
from layerdiffuse_mcp.images.alpha import Bytes

SIZE_MULTIPLE = 64  # six halvings
VIEWS = tuple((flipped, quarters) for flipped in (False, True) for quarters in range(4))
BYTES_PER_VIEW_PIXEL = {"cpu": 950, "cuda": 1600}  # peak activations of a float32 view at the released widths
SMALL = 2 * 256 * 256  # pixels up to which several views are one batch on a CPU


@torch.inference_mode()
def decode(
    decoder: TransparentDecoder,
    pixel: Tensor,
    latent: Tensor,
    *,
    augmented: bool = True,
    memory: int | None = None,
    on_view: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Alpha and colour of decoded pictures.

    The decoder is run on the eight flips and rotations of each picture, each result is clipped and turned back, and
    the element-wise lower median is kept; with `augmented` off it is run once and its result is left as it is. Sizes
    that are no multiples of 64 are continued at the right and the bottom by their mirror image, and cropped again (that
    comes nearer to a decode of the whole picture than repeating the edge, as the norms then see the usual content).

    Args:
        decoder: on any device, in any float type.
        pixel: (B, 3, H, W), 0 to 1, as the VAE decodes it; H and W multiples of 8.
        latent: (B, C, H/8, W/8), the one that the decoder was trained to see.
        memory: bytes that activations may take, by default half of what is free. As many views as fit run at once: as
            one batch on a GPU, side by side on the threads of a CPU.
        on_view: called with (views done, views in all) after each view or batch of views; may raise to stop.

    Returns:
        (B, 4, H, W) float32 on the decoder's device: alpha, red, green, blue; colour is straight, not premultiplied.

    Raises:
        ImageError: pictures and latents do not belong together.
        ModelError: the result is not finite.
    """
    count, _, height, width = pixel.shape
    small = (height // LATENT_DOWNSCALE, width // LATENT_DOWNSCALE)
    if pixel.shape[1] != 3 or latent.shape != (count, decoder.latent_channels, *small):
        raise ImageError(
            f"Pictures of shape {tuple(pixel.shape)} and latents of shape {tuple(latent.shape)} do not belong "
            f"together: a latent has {decoder.latent_channels} channels, and an eighth of the picture's height and "
            "width."
        )
    if height % LATENT_DOWNSCALE or width % LATENT_DOWNSCALE:
        raise ImageError(f"A picture of {width}x{height} cannot be decoded: sides are multiples of {LATENT_DOWNSCALE}.")

    weight = decoder.conv_in.weight
    down, right = -height % SIZE_MULTIPLE, -width % SIZE_MULTIPLE
    pixel = _mirrored(pixel.to(weight), down, right)
    latent = _mirrored(latent.to(weight), down // LATENT_DOWNSCALE, right // LATENT_DOWNSCALE)

    run = BandedDecoder(decoder) if weight.device.type == "cpu" else decoder
    views = VIEWS if augmented else VIEWS[:1]
    at_once, batch = _at_once(pixel, memory)
    chunks = [*_chunks(views, batch, square=pixel.shape[2] == pixel.shape[3])]
    results: list[Tensor] = []
    for index in range(count):
        one = pixel[index : index + 1], latent[index : index + 1]
        turned: list[Tensor] = []
        for seen in threads.side_by_side(
            lambda chunk, one=one: _decode_views(run, *one, chunk, clip=augmented), chunks, at_once
        ):
            turned += seen
            if on_view:
                on_view(index * len(views) + len(turned), count * len(views))
        results.append(lower_median(turned) if augmented else turned[0])

    decoded = torch.cat(results)[:, :, :height, :width].float().contiguous()
    if not decoded.isfinite().all():
        raise ModelError(
            "The transparent decoder returned numbers that are not finite. The picture it was given probably "
            "overflowed in float16: run the VAE and the decoder in bfloat16 or float32."
        )
    return decoded


def to_rgba8(decoded: Tensor) -> Bytes:
    """A decoded picture (4, H, W) or pictures (B, 4, H, W) as uint8 (..., H, W, 4): red, green, blue, straight alpha.

    Values are clipped and truncated as in `to_rgb8`.
    """
    return to_rgb8(decoded.roll(-1, dims=-3))


def to_rgb8(pixels: Tensor) -> Bytes:
    """Pictures (..., C, H, W), 0 to 1, as uint8 (..., H, W, C).

    Values are clipped to 0..1 and truncated, not rounded: 255 only where the network says 1, as the reference saves
    opaque and transparent pictures alike.
    """
    return (pixels.movedim(-3, -1).float().clamp(0, 1) * 255).to(torch.uint8).cpu().numpy()


def lower_median(views: list[Tensor]) -> Tensor:
    """The fourth smallest of eight tensors, element by element (what `torch.median` over a stack of them gives).

    Two sorted fours a and b: the four smallest of all are min(a[i], b[3 - i]), and the largest of these is the
    fourth. 27 element-wise operations, and no stack of the eight is made: many times faster than a sort.
    """
    first, second = _sorted_four(views[:4]), _sorted_four(views[4:])
    lower = [torch.minimum(a, b) for a, b in zip(first, reversed(second), strict=True)]
    return torch.maximum(torch.maximum(lower[0], lower[1]), torch.maximum(lower[2], lower[3]))


def _sorted_four(values: list[Tensor]) -> list[Tensor]:
    a, b, c, d = values
    a, b = torch.minimum(a, b), torch.maximum(a, b)
    c, d = torch.minimum(c, d), torch.maximum(c, d)
    a, c = torch.minimum(a, c), torch.maximum(a, c)
    b, d = torch.minimum(b, d), torch.maximum(b, d)
    return [a, torch.minimum(b, c), torch.maximum(b, c), d]


def _mirrored(picture: Tensor, down: int, right: int) -> Tensor:
    """(B, C, H, W) continued by `down` rows and `right` columns of its mirror image, repeated where it is smaller."""
    for dim, more in ((2, down), (3, right)):
        size = picture.shape[dim]
        if more:
            place = torch.arange(size + more, device=picture.device) % (2 * size)
            picture = picture.index_select(dim, torch.minimum(place, 2 * size - 1 - place))
    return picture


def _turn(picture: Tensor, view: tuple[bool, int]) -> Tensor:
    """Mirror (left and right) if asked, then turn by quarters."""
    flipped, quarters = view
    return torch.rot90(picture.flip(3) if flipped else picture, quarters, dims=(2, 3))


def _turn_back(picture: Tensor, view: tuple[bool, int]) -> Tensor:
    flipped, quarters = view
    upright = torch.rot90(picture, -quarters, dims=(2, 3))
    return upright.flip(3) if flipped else upright


def _chunks(views: tuple[tuple[bool, int], ...], batch: int, *, square: bool) -> Iterator[tuple[tuple[bool, int], ...]]:
    """Views that can run as one batch: at most `batch`, and upright apart from lying ones unless square."""
    groups = [views] if square else [tuple(view for view in views if view[1] % 2 == odd) for odd in (0, 1)]
    for group in groups:
        for start in range(0, len(group), batch):
            yield group[start : start + batch]


def _at_once(pixel: Tensor, memory: int | None) -> tuple[int, int]:
    """On how many threads views of a picture (B, 3, H, W) are decoded in `memory` bytes, and how many in a batch."""
    device, pixels = pixel.device, pixel.shape[2] * pixel.shape[3]
    if device.type not in BYTES_PER_VIEW_PIXEL:
        return 1, 1
    if memory is None:
        memory = memory_free(device)[0] // 2
    one = pixels * BYTES_PER_VIEW_PIXEL[device.type] * pixel.element_size() // 4
    fit = max(1, min(len(VIEWS), memory // one))
    if device.type == "cuda":
        return 1, fit
    at_once = min(fit, threads.ALL)
    return at_once, max(1, min(fit // at_once, SMALL // pixels))


def _decode_views(
    run: Callable[[Tensor, Tensor], Tensor],
    pixel: Tensor,
    latent: Tensor,
    views: tuple[tuple[bool, int], ...],
    *,
    clip: bool,
) -> list[Tensor]:
    """What `run` makes of one picture in some views, as one batch, turned back."""
    pixels, latents = (torch.cat([_turn(part, view) for view in views]) for part in (pixel, latent))
    decoded = run(pixels.contiguous(memory_format=torch.channels_last), latents)
    if clip:
        decoded = decoded.clamp(0, 1)
    return [_turn_back(one, view) for one, view in zip(decoded.split(1), views, strict=True)]
