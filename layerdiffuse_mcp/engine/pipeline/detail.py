"""What a redrawing begins from: the layers that were drawn, enlarged with their alpha.

    for stage, edit in zip(larger.stages, redrawings(larger, drawn, mask, model.latent)): ...

Colour is weighted by alpha and enlarged by the filter that enlarges alpha, so that no hidden colour comes to an edge.
"""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from layerdiffuse_mcp.api.plan import DrawPlan
from layerdiffuse_mcp.engine.types import Edit
from layerdiffuse_mcp.families.registry import METHODS
from layerdiffuse_mcp.families.spec import LatentFormat
from layerdiffuse_mcp.images.alpha import Bytes
from layerdiffuse_mcp.images.fitting import enlarged

MARGIN = 4
"""What part of the tiles' overlap may be redrawn around what is visible."""


def redrawings(
    plan: DrawPlan, drawn: Sequence[Sequence[Bytes]], mask: Bytes | None, latent: LatentFormat
) -> Iterator[Edit]:
    """What each stage of a plan begins from.

    Args:
        plan: of the redrawing (`DrawPlan.as_detailed`), whose size is the larger one.
        drawn: of each result its layers in the order of the stages and their outputs, (H, W, 4) or (H, W, 3), uint8.
        mask: (H, W), uint8, 255 where to draw anew; or None: then in several tiles, of a transparent picture alone,
            what is visible and a margin around it, for else a tile that shows little of it would begin another.
    """
    size = plan.width, plan.height
    padded = latent.padded(*size)
    height, width = drawn[0][0].shape[:2]
    large = None if mask is None else _enlarged_mask(mask[:height, :width], size, padded)
    begin = 0
    for stage in plan.stages:
        method = METHODS[stage.method]
        end = begin + method.frames
        larger = [enlarged(pixels, size, padded) for layers in drawn for pixels in layers[begin:end]]
        tiling = plan.tiling
        if large is None and method.outputs == (method.transparent,) and tiling and len(tiling.boxes(padded)) > 1:
            yield Edit(larger, _visible(larger, tiling.overlap // MARGIN))
        else:
            yield Edit(larger, large)
        begin = end


def _visible(pictures: Sequence[Bytes], margin: int) -> Bytes:
    """Where any of the pictures is visible, and `margin` pixels around: 255, else 0."""
    seen = np.max([picture[..., 3] for picture in pictures], axis=0)
    grown = cv2.dilate((seen > 0).astype(np.uint8) * 255, np.ones((2 * margin + 1, 2 * margin + 1), np.uint8))
    return grown.astype(np.uint8, copy=False)


def _enlarged_mask(mask: Bytes, size: tuple[int, int], padded: tuple[int, int]) -> Bytes:
    larger = cv2.resize(np.ascontiguousarray(mask), size, interpolation=cv2.INTER_LINEAR)
    margins = 0, padded[1] - size[1], 0, padded[0] - size[0]
    return cv2.copyMakeBorder(larger, *margins, cv2.BORDER_REPLICATE).astype(np.uint8, copy=False)
