"""Blend modes: how a layer's colour meets that of what lies below it.

    pixels = blended(top, bottom, "multiply")

The formulas are those of W3C "Compositing and Blending Level 1", which Photoshop's PDF reference defines alike. Colours
are float32, 0 to 1, not multiplied by alpha; the backdrop comes first.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from layerdiffuse_mcp.images.alpha import Floats, over

NORMAL, ADD, PLUS = "normal", "add", "plus"


@dataclass(frozen=True)
class Mode:
    """A blend mode: its key in PSD, its name in OpenRaster, and the colour that two opaque ones make."""

    psd: bytes
    ora: str
    mix: Callable[[Floats, Floats], Floats] | None


def multiply(backdrop: Floats, source: Floats) -> Floats:
    """Darkens: white changes nothing."""
    return backdrop * source


def screen(backdrop: Floats, source: Floats) -> Floats:
    """Lightens: black changes nothing."""
    return backdrop + source - backdrop * source


def overlay(backdrop: Floats, source: Floats) -> Floats:
    """Multiplies where the backdrop is dark, screens where it is light."""
    return np.where(backdrop <= 0.5, multiply(2 * backdrop, source), screen(2 * backdrop - 1, source))


def soft_light(backdrop: Floats, source: Floats) -> Floats:
    """Darkens or lightens gently, as the source is below or above mid-grey."""
    root = np.where(backdrop <= 0.25, ((16 * backdrop - 12) * backdrop + 4) * backdrop, np.sqrt(backdrop))
    reach = np.where(source <= 0.5, backdrop * (1 - backdrop), root - backdrop)
    return backdrop + (2 * source - 1) * reach


def add(backdrop: Floats, source: Floats) -> Floats:
    """Light on light; Photoshop's "linear dodge"."""
    return np.minimum(backdrop + source, 1)


MODES = {
    NORMAL: Mode(b"norm", "svg:src-over", None),
    "multiply": Mode(b"mul ", "svg:multiply", multiply),
    "screen": Mode(b"scrn", "svg:screen", screen),
    "overlay": Mode(b"over", "svg:overlay", overlay),
    "soft-light": Mode(b"sLit", "svg:soft-light", soft_light),
    ADD: Mode(b"lddg", "svg:plus", add),
}


def blended(top: Floats, bottom: Floats, mode: str = NORMAL) -> Floats:
    """`top` over `bottom`, both (H, W, 4), straight alpha, by a mode of `MODES` or by `PLUS`.

    Where the bottom is transparent, the top keeps its own colour. All but `PLUS` leave the alpha that `over` gives;
    `PLUS` is OpenRaster's svg:plus (Porter and Duff's operator plus): alpha adds up as colour does.
    """
    if mode == PLUS:
        return _plus(top, bottom)
    mix = MODES[mode].mix
    if mix is None:
        return over(top, bottom)
    cover = bottom[..., 3:]
    colour = (1 - cover) * top[..., :3] + cover * mix(bottom[..., :3], top[..., :3])
    return over(np.concatenate([colour, top[..., 3:]], axis=-1), bottom)


def _plus(top: Floats, bottom: Floats) -> Floats:
    alpha = np.minimum(top[..., 3:] + bottom[..., 3:], 1)
    weighted = np.minimum(top[..., :3] * top[..., 3:] + bottom[..., :3] * bottom[..., 3:], 1)
    colour = np.divide(weighted, alpha, out=np.zeros_like(weighted), where=alpha > 0)
    return np.concatenate([colour, alpha], axis=-1)
