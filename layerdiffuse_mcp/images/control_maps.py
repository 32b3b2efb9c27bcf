"""The maps that are made here of a picture for a ControlNet; other maps (depth, poses) are given as they are.

    control_map(picture, "canny")       # (H, W, 3), uint8: white edges on black
    looks_like_lines(picture)           # whether it could be such a map already

Source of the thresholds: the examples of ControlNet's authors (`lllyasviel/ControlNet`, gradio_canny2image.py).
"""

from collections.abc import Callable, Mapping

import cv2
import numpy as np

from layerdiffuse_mcp.images.alpha import Bytes, on_level

LOW, HIGH = 100, 200
GREY = 128
DARK = 64
LEAST_DARK, MOST_COLOURED = 0.5, 0.05
"""Shares of the pixels of a map of lines, which are thin."""


def control_map(picture: Bytes, preprocess: str) -> Bytes:
    """What a ControlNet is shown of a picture (H, W, 4), uint8: (H, W, 3), uint8. preprocess: of `choices.PREPROCESS`.

    Transparent parts are black in a map that is given, and grey where edges are looked for.
    """
    return _MAPS[preprocess](picture)


def looks_like_lines(picture: Bytes) -> bool:
    """Whether a picture (H, W, 4), uint8, could be a map of light lines on black: mostly dark, and without colour."""
    seen = control_map(picture, "none")
    dark = (seen.max(axis=-1) < DARK).mean()
    coloured = (np.ptp(seen, axis=-1) > DARK).mean()
    return bool(dark >= LEAST_DARK and coloured <= MOST_COLOURED)


def _edges(channel: Bytes) -> Bytes:
    return cv2.cvtColor(cv2.Canny(np.ascontiguousarray(channel), LOW, HIGH), cv2.COLOR_GRAY2RGB).astype(
        np.uint8, copy=False
    )


_MAPS: Mapping[str, Callable[[Bytes], Bytes]] = {
    "none": lambda picture: on_level(picture, 0),
    "canny": lambda picture: _edges(on_level(picture, GREY)),
    "alpha_edge": lambda picture: _edges(picture[..., 3]),
}
