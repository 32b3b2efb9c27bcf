"""At what size a model draws what is asked for: as asked where that is near its own, else near its own and fitted.

sizing = sized((1200, 630), None, None, 128, 8, opaque=False)
sizing.drawn, sizing.fit        # ((176, 96), "contain"): drawn, then fitted
whole_box((176, 96), (1200, 630), "contain")      # where all that was drawn lies in the result
placement((3000, 2000), (176, 96), field)         # where the result lies on the picture that it was drawn from
"""

import math
from dataclasses import dataclass

from layerdiffuse_mcp.api.choices import FITS, RESIZE_MODES
from layerdiffuse_mcp.api.fields import MAX_SIZE, MIN_DRAWN
from layerdiffuse_mcp.api.outcome import Placement
from layerdiffuse_mcp.errors import InvalidRequest

Size = tuple[int, int]
"""Width and height in pixels."""
AS_IS, CONTAIN, COVER, STRETCH = FITS
CROPPED, _, RESIZED = RESIZE_MODES
Near = tuple[float, float]
"""Areas, in a model's own, that are drawn as they are asked for."""
NEAR: Near = (0.5, 1.5)
"""Of most models."""


@dataclass(frozen=True)
class Sizing:
    """How a result comes to its size: drawn so, or at the size `drawn` and fitted by `fit`."""

    fit: str = AS_IS
    drawn: Size | None = None


@dataclass(frozen=True)
class Field:
    """How a result lies in what the model saw: a given picture was fitted to `seen` pixels by `resize_mode`, of which
    those of `drawn`, from the top left, were drawn and fitted by `fit` to the result.
    """

    seen: Size
    drawn: Size
    fit: str
    resize_mode: str


def fit(size: Size, native_size: int, step: int = 64) -> Size:
    """The size of about native_size^2 pixels with the shape of `size`, in steps of `step` pixels."""
    scale = native_size / math.sqrt(size[0] * size[1])
    width, height = (min(MAX_SIZE, max(MIN_DRAWN, round(side * scale / step) * step)) for side in size)
    return width, height


def within(size: Size) -> Size:
    """The size itself, or the largest of its shape that a result may have."""
    scale = min(1.0, MAX_SIZE / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    return width, height


def area(size: Size, native_size: int) -> float:
    """A size's area, in a model's own."""
    return size[0] * size[1] / native_size**2


def sized(
    asked: Size, how: str | None, drawn: Size | None, native_size: int, step: int, *, opaque: bool, near: Near = NEAR
) -> Sizing:
    """What to draw for the size `asked`.

    Args:
        how: one of `choices.FITS`, or None: an `opaque` layer fills its picture, and what belongs to it lies as it
            does; what is transparent is shown whole.
        drawn: what a recipe says was drawn, which is drawn again.

    Raises:
        InvalidRequest: it is to be drawn as it is, and no model draws so small a picture.
        step: what the sides of a size that is drawn instead are multiples of.
    """
    if how == AS_IS and drawn is None and min(asked) < MIN_DRAWN:
        raise InvalidRequest(
            f"{asked[0]}x{asked[1]} cannot be drawn as it is: models draw at least {MIN_DRAWN} pixels a side. Leave "
            "options.fit out, and it is drawn larger and made smaller."
        )
    if drawn is not None:
        return Sizing(how or AS_IS, drawn)
    near_enough = min(asked) >= MIN_DRAWN and near[0] <= area(asked, native_size) <= near[1]
    if how == AS_IS or near_enough:
        return Sizing()
    nearest = fit(asked, native_size, step)
    return Sizing() if nearest == asked else Sizing(how or (COVER if opaque else CONTAIN), nearest)


def doubts(asked: Size, sizing: Sizing, native_size: int, model: str, near: Near = NEAR) -> tuple[str, ...]:
    """What to say of a size that is far from a model's own."""
    times = area(asked, native_size)
    if sizing.drawn is None and near[0] <= times <= near[1]:
        return ()
    size, own = (f"{width}x{height}" for width, height in (asked, (native_size, native_size)))
    far = f"{size} has {times:.3g} times the area that {model} draws best ({own})"
    if sizing.drawn is None:
        return (f"{far}: subjects often repeat or fall apart at such a size. options.fit='contain' avoids it.",)
    drawn = f"{sizing.drawn[0]}x{sizing.drawn[1]}"
    left, _, right, _ = whole_box(sizing.drawn, asked, sizing.fit)
    changed = "enlarged, which adds no detail" if right - left > sizing.drawn[0] else "made smaller"
    itself = f" options.fit='as_is' draws {size} itself." if min(asked) >= MIN_DRAWN else ""
    return (f"{far}: it was drawn as {drawn} and {changed} (fit '{sizing.fit}').{itself}",)


def whole_box(drawn: Size, size: Size, how: str) -> tuple[int, int, int, int]:
    """Where all of a picture that was drawn lies in the one of `size` that it is fitted to, in its middle.

    Left, top, right, bottom in pixels; it stands over where `how` is "cover".
    """
    if how == STRETCH:
        return 0, 0, *size
    factors = [side / own for side, own in zip(size, drawn, strict=True)]
    factor = max(factors) if how == COVER else min(factors)
    width, height = (max(1, round(side * factor)) for side in drawn)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def placement(picture: Size, size: Size, field: Field) -> Placement:
    """Where a result of `size` lies on the picture that it was drawn from. Sizes are (width, height).

    With "Resize and Fill" what the model saw reaches beyond the picture, with "contain" the result beyond that.
    """
    factors = [small / large for small, large in zip(field.seen, picture, strict=True)]
    if field.resize_mode != RESIZED:
        factors = [max(factors) if field.resize_mode == CROPPED else min(factors)] * 2
    whole = whole_box(field.drawn, size, field.fit)
    (x, width, left, right), (y, height, top, bottom) = (
        _along(picture[n], field.seen[n], factors[n], field.drawn[n] / (whole[n + 2] - whole[n]), whole[n], size[n])
        for n in (0, 1)
    )
    scale = round(width / size[0], 4)
    return Placement(x=x, y=y, width=width, height=height, scale=scale, crop=(left, top, right, bottom))


def _along(picture: int, seen: int, factor: float, drawn: float, begin: int, size: int) -> tuple[int, int, int, int]:
    """Along one axis of the picture: where the result begins, its length, and from where to where the model saw it.

    Args:
        factor: by which the picture was scaled, of which the model then saw `seen` pixels in the middle.
        drawn: pixels of those that a pixel of the result shows; the first of them is its pixel `begin`.
    """
    scaled = max(1, round(picture * factor))
    pixel = picture / scaled
    first = math.trunc((scaled - seen) / 2)
    start, length = round((first - begin * drawn) * pixel), max(1, round(size * drawn * pixel))
    return start, length, max(0, round(first * pixel)), min(picture, round((first + seen) * pixel))
