"""A picture taken apart: each layer once more, as deep as is asked for, then cut to what is visible of it.

    layers = taken_apart(layers, draw_again, pictures.layers, depth=2)

Layers of a layer have its name and a number: "layer 2.1". They are laid together in the place of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import cv2

from layerdiffuse_mcp.engine.types import LayerImage, Pictures
from layerdiffuse_mcp.families.spec import Role
from layerdiffuse_mcp.images.alpha import Bytes
from layerdiffuse_mcp.images.transform import resampled


def taken_apart(
    layers: Sequence[LayerImage],
    again: Callable[[Pictures], list[LayerImage]],
    given: Mapping[Role, Bytes],
    depth: int,
) -> list[LayerImage]:
    """The layers that are left of those of one picture, from the bottom up, each with its box.

    Args:
        again: draws the layers of another picture; it is asked with the size of the one that was given.
        given: that picture, by its role.
        depth: how many times layers are taken apart, the first time counted.
    """
    [(role, picture)] = given.items()
    size = picture.shape[1], picture.shape[0]
    for _ in range(1, depth):
        layers = [part for whole in layers for part in _parts(whole, again, role, size)]
    seen = [layer for layer in layers if layer.pixels[..., 3].any()] or [*layers[:1]]
    return [replace(_cut(layer), order=order) for order, layer in enumerate(seen)]


def _parts(
    whole: LayerImage, again: Callable[[Pictures], list[LayerImage]], role: Role, size: tuple[int, int]
) -> list[LayerImage]:
    """The layers of a layer; of an empty one there is nothing to draw."""
    if not whole.pixels[..., 3].any():
        return [whole]
    parts = again(Pictures({role: resampled(whole.pixels, size)}))
    return [replace(part, name=f"{whole.name}.{number}") for number, part in enumerate(parts, start=1)]


def _cut(layer: LayerImage) -> LayerImage:
    """What is visible of a layer, and where; one that fills the picture or is empty stays whole."""
    height, width = layer.pixels.shape[:2]
    left, top, wide, high = cv2.boundingRect((layer.pixels[..., 3] > 0).astype("uint8"))
    if not wide or (wide, high) == (width, height):
        return layer
    box = left, top, left + wide, top + high
    return replace(layer, pixels=layer.pixels[top : top + high, left : left + wide].copy(), box=box)
