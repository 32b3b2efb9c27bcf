"""Fitting a given picture to the size of a generation, in the three ways that the reference offers; and scaling layers.

The filters are OpenCV's (area when the picture gets smaller, Lanczos over 8x8 pixels when it gets larger), because
the condition picture is part of the exact result.
"""

from collections.abc import Callable, Iterator

import cv2
import numpy as np

from layerdiffuse_mcp.api.choices import RESIZE_MODES
from layerdiffuse_mcp.api.fields import MAX_SIZE
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.alpha import Bytes, Floats, tiles, to_float

CROP, FILL, STRETCH = RESIZE_MODES
MOST_SCALED = 4 * MAX_SIZE**2
"""Pixels that a picture may have once it is scaled and not yet cropped."""


def check_fits(size: tuple[int, int], drawn: tuple[int, int], mode: str, name: str = "given") -> None:
    """Refuse a picture so long that it would be many times what is drawn before it is cropped: InvalidRequest.

    Sizes are (width, height) in pixels; `name` is what the picture is called.
    """
    (old_width, old_height), (width, height) = size, drawn
    factor = max(height / old_height, width / old_width)
    if mode == CROP and factor**2 * old_height * old_width > MOST_SCALED:
        raise InvalidRequest(
            f"The {name} picture of {old_width}x{old_height} cannot be fitted to {width}x{height} by {CROP}, which "
            f"would make it {old_width * factor:.0f}x{old_height * factor:.0f} first. Crop it, or choose another "
            "resize_mode."
        )


def resized(picture: Floats, height: int, width: int, mode: str = CROP) -> Floats:
    """Fit `picture` (H, W, C), float32, to (height, width, C).

    Args:
        mode: one of `choices.RESIZE_MODES`. "Crop and Resize" fills the size and cuts off what stands over,
            "Resize and Fill" shows all and fills the rest with the median colour of the border, "Just Resize"
            stretches.

    Lanczos may leave the range of its input by a little; nothing is clipped, as in the reference. Raises InvalidRequest
    as `check_fits` does: a header need not say how its picture is turned.
    """
    if mode == STRETCH:
        return _scaled(picture, height, width)

    old_height, old_width = picture.shape[:2]
    factors = (height / old_height, width / old_width)
    if mode == FILL:
        scaled = _scaled_by(picture, min(factors))
        border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        canvas = np.tile(np.median(border, axis=0).astype(picture.dtype), (height, width, 1))
        top, left = _margin(height, scaled.shape[0]), _margin(width, scaled.shape[1])
        canvas[top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled
        return canvas

    check_fits((old_width, old_height), (width, height), mode)
    scaled = _scaled_by(picture, max(factors))
    top, left = _margin(scaled.shape[0], height), _margin(scaled.shape[1], width)
    return np.ascontiguousarray(scaled[top : top + height, left : left + width])


def resized_channels(rgba: Bytes, width: int, height: int, interpolation: int) -> Iterator[tuple[int, Floats]]:
    """`weighted_channels` of `rgba` at another size: within 0 to 1, but for what the filter overshoots."""

    def change(plane: Floats) -> Floats:
        return (
            cv2.resize(plane, (width, height), interpolation=interpolation)
            .reshape(height, width)
            .astype(np.float32, copy=False)
        )

    return weighted_channels(rgba, change)


def weighted_channels(rgba: Bytes, change: Callable[[Floats], Floats]) -> Iterator[tuple[int, Floats]]:
    """Change `rgba` (H, W, 4), uint8, with its colour weighted by alpha, one channel after another.

    `change` gets a plane (H, W), float32, 0 to 1, and returns another. Yields each channel's number, alpha (3) first,
    and what became of its plane; colour is multiplied by alpha. Takes 4 bytes a pixel of the picture and 4 a pixel of
    the new plane.
    """
    plane = np.empty(rgba.shape[:2], np.float32)
    for channel in (3, 0, 1, 2):
        for tile in tiles(*rgba.shape[:2]):
            plane[tile] = to_float(rgba[tile][..., 3])
            if channel != 3:
                plane[tile] *= to_float(rgba[tile][..., channel])
        yield channel, change(plane)


def _margin(outer: int, inner: int) -> int:
    return max(0, (outer - inner) // 2)


def _scaled_by(picture: Floats, factor: float) -> Floats:
    height, width = (max(1, round(side * factor)) for side in picture.shape[:2])
    return _scaled(picture, height, width)


def _scaled(picture: Floats, height: int, width: int) -> Floats:
    if picture.shape[:2] == (height, width):
        return picture.copy()
    smaller = height * width < picture.shape[0] * picture.shape[1]
    filter_ = cv2.INTER_AREA if smaller else cv2.INTER_LANCZOS4
    return cv2.resize(picture, (width, height), interpolation=filter_).reshape(height, width, -1).astype(np.float32)
