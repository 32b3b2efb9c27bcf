"""Cutting a subject out of pictures whose background is known: soft alpha, and the subject's own colour.

    cut = cut_from_two(on_black, on_white, black, white)               # exact
    cut = cut_from_known(picture, background)                          # a colour, or the empty scene as a picture
    cut.rgba, cut.enclosed

A pixel is C = aF + (1 - a)B of alpha a, the subject's colour F and the background B. Two backgrounds determine a and F
(Smith and Blinn, "Blue screen matting", 1996); one does not, so F is assumed: near an edge it is the colour of the
solid parts nearest to it, and where nothing nearby explains the pixel, the strongest colour of the picture that does.
Pictures are (H, W, 3) or (H, W, 4), uint8; what is said of a background holds of their colour alone.
Takes at most 37 bytes a pixel.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.alpha import MAX_INVISIBLE, Bytes, Floats, Tile, tiles, to_bytes, to_float
from layerdiffuse_mcp.images.tasks import Colour

Background = Bytes | Colour
Report = Callable[[float], None]

SAME, NOISY = 2 / 255, 16 / 255
"""Differences from the background up to which a pixel is background: in a clean picture, and in the noisiest."""
FLAT_SHARE = 0.6
"""Share of a border that has one colour where the background is said to have one."""
BY_EYE = 0.15
"""How far a colour that somebody names may be from the one that is there."""
TOO_ALIKE = 0.12
"""Distance between two backgrounds below which they tell little of alpha; and of what closes a part of one off, which
the ripples beside an edge that was scaled or compressed do not."""
ALIKE_SHARE = 0.05
CONTRADICTED = 0.2
"""How far a channel may be from what the alpha of all three says. JPEG brings fewer than 1 of 200 visible pixels beyond
it, a subject that moved by 4 pixels more than 1 of 100."""

SMOOTH = 1.0
"""Standard deviation in pixels of the blur that slopes are measured after."""
DEEPEST_EDGE = 32.0
"""Pixels from the background within which an edge may be soft."""
PLATEAU = 0.3
"""Relative rise of the distance from the background, over its depth, below which a pixel is solid. A soft edge that
rises evenly from nothing has 1."""
SOLID_DEPTH, DEEP = 2.5, 6.0
ALMOST_SOLID = 0.9
"""Alpha beside the nearest deep colour from which a shallow plateau is solid: the rest is shading."""

FITS = 0.04
"""Distance from the line between background and subject up to which a colour lies on it."""
MAX_PALETTE = 96
CLEAR = 5
"""Times the tolerance that a colour of the subject has to be away from the background's."""
SAMPLES = 200_000
DIRECTIONS = 8
"""Steps from 0 to 1 in which directions of colour are told apart."""
STEADY = 0.2
"""Alpha below which the assumed colour is kept rather than the one computed: noise is divided by alpha."""


@dataclass(frozen=True)
class Cut:
    """A cut-out: `rgba` (H, W, 4), uint8, straight; `enclosed` is the share of pixels that equal the background and
    are cut off from it by the subject: holes, or parts of the subject that have its colour; `contradicted` is the share
    of what is visible that no alpha explains, where two pictures ought to."""

    rgba: Bytes
    enclosed: float = 0.0
    contradicted: float = 0.0


def ignore(_: float) -> None:
    """A report that nobody reads."""


def border_colour(picture: Bytes, meant: Colour | None = None) -> Colour:
    """The one colour that a picture's border has; or of the tones there that may be `meant` the commonest.

    People name a colour by eye: where the border has none that is near, the colour is what was meant.

    Raises:
        InvalidRequest: the border has several, and none is meant.
    """
    border = _border(picture)
    if meant is not None:
        border = border[np.abs(border - np.asarray(meant, np.float32)).max(axis=1) <= BY_EYE]
        if not len(border):
            return meant
    colour = np.median(border, axis=0)
    share = 1.0 if meant else float((np.abs(border - colour).max(axis=1) <= NOISY).mean())
    if share < FLAT_SHARE:
        raise InvalidRequest(
            f"The background is not one colour: only {share:.0%} of the picture's border is near its commonest colour. "
            "Give background (a colour, or a picture of the scene without the subject), or cut it out with a model."
        )
    red, green, blue = (float(part) for part in colour)
    return red, green, blue


def cut_from_two(first: Bytes, second: Bytes, below_first: Background, below_second: Background) -> Cut:
    """The subject of two pictures that differ in the background alone.

    Source: Smith and Blinn, "Blue screen matting" (SIGGRAPH 1996), theorem 4: exact, but for the rounding to 8 bits.

    Raises:
        InvalidRequest: sizes differ, or the backgrounds are too alike.
    """
    for other in (second, below_first, below_second):
        _check_size(first, other)
    rgba = np.empty((*first.shape[:2], 4), np.uint8)
    alike = contradicted = visible = 0
    for tile in tiles(*first.shape[:2]):
        colours = [to_float(picture[tile][..., :3]) for picture in (first, second)]
        grounds = [_at(below, tile) for below in (below_first, below_second)]
        apart = np.broadcast_to(grounds[0] - grounds[1], colours[0].shape)
        square = (apart * apart).sum(axis=-1)
        alike += int(np.count_nonzero(square < TOO_ALIKE**2))
        shown = ((colours[0] - colours[1]) * apart).sum(axis=-1) / np.maximum(square, TOO_ALIKE**2)
        alpha = np.clip(1 - shown, 0, 1)[..., None]
        off = np.abs(colours[0] - colours[1] - (1 - alpha) * apart).max(axis=-1)
        contradicted += int(np.count_nonzero(off > CONTRADICTED))
        visible += int(np.count_nonzero(alpha > MAX_INVISIBLE / 255))
        weighted = sum(colour - (1 - alpha) * ground for colour, ground in zip(colours, grounds, strict=True)) / 2
        rgba[tile] = _joined(np.divide(weighted, alpha, out=np.zeros_like(weighted), where=alpha > 0), alpha)
    if alike > ALIKE_SHARE * first.shape[0] * first.shape[1]:
        raise InvalidRequest(
            "The two backgrounds are too alike to tell what shines through: use two that differ much, such as black "
            "and white."
        )
    return Cut(rgba, contradicted=contradicted / max(1, visible))


def cut_from_known(
    picture: Bytes,
    background: Background,
    *,
    translucent: bool = False,
    joined: bool = False,
    noise: float = 0.0,
    report: Report = ignore,
) -> Cut:
    """The subject of one picture whose background is a colour or a picture.

    Args:
        picture: the subject before its background.
        background: a colour (red, green, blue), 0 to 1, or the same scene without the subject.
        translucent: the subject lets the background through inside, too (glass, smoke, glow, a soft shadow). Its
            strongest colours are taken to be opaque then; otherwise only its edge is soft.
        joined: only what joins the picture's border is background; what the subject encloses stays as it is.
        noise: how far a pixel of the background may be off, 0 to 1, where the file is known to be lossy; more is taken
            where the border shows more.

    Raises:
        InvalidRequest: the background has another size.
    """
    _check_size(picture, background)
    height, width = picture.shape[:2]
    tolerance = max(noise, _tolerance(picture, background))
    apart = np.empty((height, width), np.float32)
    for tile in tiles(height, width):
        apart[tile] = np.abs(to_float(picture[tile][..., :3]) - _at(background, tile)).max(axis=-1)
    differs = apart > tolerance
    enclosed = ~differs & _closed_off(apart > max(3 * tolerance, TOO_ALIKE))
    within = _around(enclosed, differs) if joined and enclosed.any() else None
    share = 0.0 if joined else float(enclosed.mean())
    del enclosed
    report(0.2)
    solid = np.zeros((height, width), np.bool_) if translucent else _solid(picture, background, apart, tolerance)
    del apart
    report(0.4)
    palette = _palette(picture, background, differs, CLEAR * tolerance)
    nearest = _Nearest(picture, solid)
    if within is not None:
        solid |= within
    report(0.6)
    rgba = np.zeros((height, width, 4), np.uint8)
    for tile in tiles(height, width):
        sure = solid[tile]
        rgba[tile][sure] = np.concatenate([picture[tile][sure][:, :3], np.full((sure.sum(), 1), 255)], axis=1)
        soft = differs[tile] & ~sure
        if soft.any():
            colour = to_float(picture[tile][soft][:, :3])
            ground = np.broadcast_to(_at(background, tile), (*soft.shape, 3))[soft]
            assumed, alpha = _unmixed(colour, ground, nearest.of(tile, soft), palette, tolerance)
            rgba[tile][soft] = _joined(_own_colour(colour, ground, assumed, alpha), alpha[:, None])
        report(0.6 + 0.4 * tile[0].stop / height)
    return Cut(rgba, share)


def _unmixed(
    colour: Floats, ground: Floats, near: Floats | None, palette: Floats, tolerance: float
) -> tuple[Floats, Floats]:
    """The subject's assumed colour (N, 3) and alpha (N,) of pixels (N, 3) before `ground` (N, 3)."""
    best = np.full(len(colour), np.inf, np.float32)
    alpha = np.ones(len(colour), np.float32)
    assumed = colour.copy()
    if near is not None:
        alpha, best = _on_line(colour, ground, near)
        assumed = near.copy()
        best[best <= tolerance + FITS] = 0  # the nearest is right where it explains the pixel
    for candidate in palette:
        share, off = _on_line(colour, ground, candidate)
        better = off < best - 1e-4
        best[better], alpha[better], assumed[better] = off[better], share[better], candidate
    return assumed, alpha


def _on_line(colour: Floats, ground: Floats, subject: Floats) -> tuple[Floats, Floats]:
    """Where a colour lies between ground (0) and subject (1), and how far off the line."""
    line = subject - ground
    given = colour - ground
    length = np.maximum((line * line).sum(axis=-1), 1e-6)
    share = np.clip((given * line).sum(axis=-1) / length, 0, 1)
    off = np.sqrt(((given - share[:, None] * line) ** 2).sum(axis=-1))
    return share.astype(np.float32), off.astype(np.float32)


def _own_colour(colour: Floats, ground: Floats, assumed: Floats, alpha: Floats) -> Floats:
    """The colour without the background's share; where little is seen, near what was assumed."""
    cover = np.maximum(alpha, 1e-3)[:, None]
    exact = np.clip((colour - (1 - cover) * ground) / cover, 0, 1)
    trust = np.clip(alpha / STEADY, 0, 1)[:, None]
    return exact * trust + assumed * (1 - trust)


def _solid(picture: Bytes, background: Background, apart: Floats, tolerance: float) -> NDArray[np.bool_]:
    """Pixels that are the subject alone: what lies behind the plateau that an edge rises to.

    Thin parts reach a plateau before they are solid: what lies shallow is checked against what lies deep.
    """
    differs = apart > tolerance
    depth = cv2.distanceTransform(differs.astype(np.uint8), cv2.DIST_L2, 5)
    smooth = cv2.GaussianBlur(apart, (0, 0), SMOOTH)
    rise = np.zeros_like(smooth)
    for axis in (0, 1):
        rise += cv2.Sobel(smooth, cv2.CV_32F, axis, 1 - axis, scale=1 / 8) * cv2.Sobel(
            depth, cv2.CV_32F, axis, 1 - axis, scale=1 / 8
        )
    rise *= np.minimum(depth, DEEPEST_EDGE)
    plateau = (depth >= SOLID_DEPTH) & (rise < PLATEAU * smooth)
    plateau |= depth > DEEPEST_EDGE
    parts = _parts(~plateau)
    outside = np.zeros(int(parts.max()) + 1, np.bool_)
    outside[np.unique(parts[~differs])] = True
    solid = (plateau | ~outside[parts]) & (apart > 3 * tolerance)
    del smooth, rise, parts, plateau
    shallow = solid & (depth < DEEP)
    nearest = _Nearest(picture, solid & ~shallow)
    for tile in tiles(*solid.shape):
        near = nearest.of(tile, shallow[tile])
        if near is not None and len(near):
            ground = np.broadcast_to(_at(background, tile), (*shallow[tile].shape, 3))[shallow[tile]]
            share, off = _on_line(to_float(picture[tile][shallow[tile]][:, :3]), ground, near)
            solid[tile][shallow[tile]] = (share > ALMOST_SOLID) | (off > FITS)
    return solid


def _closed_off(walls: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels within walls, which nothing connects with the border."""
    parts = _parts(~walls)
    border = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    connected = np.zeros(int(parts.max()) + 1, np.bool_)
    connected[border] = True
    connected[0] = True
    return ~connected[parts]


def _around(enclosed: NDArray[np.bool_], differs: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What is enclosed, and the soft edge around it: what is near, and nearer to it than to the background outside."""
    near = cv2.distanceTransform((~enclosed).astype(np.uint8), cv2.DIST_L2, 5)
    outside = cv2.distanceTransform((differs | enclosed).astype(np.uint8), cv2.DIST_L2, 5)
    return near < np.minimum(outside, DEEP, out=outside)


def _parts(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """The connected parts of a mask, numbered from 1; 0 where it is false."""
    _, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    return parts.astype(np.int32, copy=False)


class _Nearest:
    """For each pixel the colour of the solid pixel that is nearest to it."""

    def __init__(self, picture: Bytes, solid: NDArray[np.bool_]) -> None:
        self._labels: NDArray[np.int32] | None = None
        if solid.any():
            _, labels = cv2.distanceTransformWithLabels(
                (~solid).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
            )
            self._labels = labels.astype(np.int32, copy=False)
            self._colours = np.zeros((int(self._labels.max()) + 1, 3), np.uint8)
            self._colours[self._labels[solid]] = picture[solid][:, :3]

    def of(self, tile: Tile, pixels: NDArray[np.bool_]) -> Floats | None:
        """Of some pixels of a tile; (N, 3), 0 to 1."""
        return None if self._labels is None else to_float(self._colours[self._labels[tile][pixels]])


def _palette(picture: Bytes, background: Background, differs: NDArray[np.bool_], weakest: float) -> Floats:
    """Colours that the subject may have, (N, 3): of each direction away from the background the strongest.

    Those nearer to the background than `weakest` are left out, unless there are no others.
    """
    places = np.flatnonzero(differs)
    places = places[:: max(1, len(places) // SAMPLES)]
    rows, columns = np.divmod(places, picture.shape[1])
    colour = to_float(picture[rows, columns, :3])
    plain = isinstance(background, tuple)
    below = np.asarray(background, np.float32) if plain else to_float(background[rows, columns, :3])
    ground = np.broadcast_to(below, colour.shape)
    away = colour - ground
    length = np.sqrt((away * away).sum(axis=1))
    order = np.argsort(length)
    keys = np.rint(away[order] / np.maximum(length[order], 1e-6)[:, None] * DIRECTIONS).astype(np.int64) + DIRECTIONS
    keys = keys @ np.array([1, 32, 1024])
    strongest = np.full(32 * 1024, -1)
    strongest[keys] = order
    ends = strongest[strongest >= 0]
    ends = ends[np.argsort(-length[ends])]
    kept: list[int] = []
    for end in ends:
        if len(kept) == MAX_PALETTE or (kept and length[end] < weakest):
            break
        lines = colour[kept]
        if kept:
            repeated = np.broadcast_to(colour[end], lines.shape)
            _, off = _on_line(repeated, np.broadcast_to(ground[end], lines.shape), lines)
            if off.min() <= FITS / 2:
                continue
        kept.append(int(end))
    return colour[kept]


def _tolerance(picture: Bytes, background: Background) -> float:
    """How far a pixel of the background may be from it: by the noise of the picture's border."""
    border = _border(picture)
    ground = np.asarray(background, np.float32) if isinstance(background, tuple) else _border(background)
    off = np.abs(border - ground).max(axis=1)
    off = off[off <= NOISY]
    noise = float(np.median(off)) if len(off) else 0.0
    return float(np.clip(3 * noise + SAME / 2, SAME, NOISY))


def _border(picture: Bytes) -> Floats:
    """The pixels along a picture's border, (N, 3), 0 to 1."""
    edges = (picture[0], picture[-1], picture[:, 0], picture[:, -1])
    return to_float(np.concatenate(edges)[:, :3])


def _at(background: Background, tile: Tile) -> Floats:
    """A background's colour below a tile, (H, W, 3), or (3,) where it is one colour; 0 to 1."""
    return np.asarray(background, np.float32) if isinstance(background, tuple) else to_float(background[tile][..., :3])


def _joined(colour: Floats, alpha: Floats) -> Bytes:
    """Colour and alpha as one picture; nothing is left of the colour where nothing is seen."""
    rgba = to_bytes(np.concatenate([np.clip(colour, 0, 1), alpha], axis=-1))
    rgba[rgba[..., 3] == 0] = 0
    return rgba


def _check_size(picture: Bytes, other: Background) -> None:
    if not isinstance(other, tuple) and other.shape[:2] != picture.shape[:2]:
        (height, width), (high, wide) = picture.shape[:2], other.shape[:2]
        raise InvalidRequest(
            f"The pictures differ in size, {width}x{height} and {wide}x{high} pixels: give pictures of the same scene "
            "and size."
        )
