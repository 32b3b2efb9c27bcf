"""What a redrawing begins from: the layers that were drawn, enlarged with their alpha.

    for stage, edit in zip(larger.stages, redrawings(larger, drawn, masks, model.latent)): ...

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
    plan: DrawPlan, drawn: Sequence[Sequence[Bytes]], masks: Sequence[Bytes], latent: LatentFormat
) -> Iterator[Edit]:
    """What each stage of a plan begins from.

    Args:
        plan: of the redrawing (`DrawPlan.as_detailed`), whose size is the larger one.
        drawn: of each result its layers in the order of the stages and their outputs, (H, W, 4) or (H, W, 3), uint8.
        masks: (H, W), uint8, 255 where to draw anew, as of `Edit`; without: in several tiles, of a transparent picture
            alone, what is visible of it and a margin, for else a tile that shows little of it would begin another.
    """
    size = plan.width, plan.height
    padded = latent.padded(*size)
    height, width = drawn[0][0].shape[:2]
    given = [_enlarged_mask(mask[:height, :width], size, padded) for mask in masks]
    begin = 0
    for stage in plan.stages:
        method = METHODS[stage.method]
        end = begin + method.frames
        larger = [enlarged(pixels, size, padded) for layers in drawn for pixels in layers[begin:end]]
        tiling = plan.tiling
        if not masks and method.outputs == (method.transparent,) and tiling and len(tiling.boxes(padded)) > 1:
            yield Edit(larger, [_visible(picture, tiling.overlap // MARGIN) for picture in larger])
        else:
            yield Edit(larger, given)
        begin = end


def _visible(picture: Bytes, margin: int) -> Bytes:
    """Where a picture (H, W, 4) is visible, and `margin` pixels around: 255, else 0."""
    seen = (picture[..., 3] > 0).astype(np.uint8) * 255
    grown = cv2.dilate(seen, np.ones((2 * margin + 1, 2 * margin + 1), np.uint8))
    return grown.astype(np.uint8, copy=False)


def _enlarged_mask(mask: Bytes, size: tuple[int, int], padded: tuple[int, int]) -> Bytes:
    larger = cv2.resize(np.ascontiguousarray(mask), size, interpolation=cv2.INTER_LINEAR)
    margins = 0, padded[1] - size[1], 0, padded[0] - size[0]
    return cv2.copyMakeBorder(larger, *margins, cv2.BORDER_REPLICATE).astype(np.uint8, copy=False)
