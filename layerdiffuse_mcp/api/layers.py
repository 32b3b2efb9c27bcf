"""What can be said of a composition: layers, their shadows, the canvas. Tools, command line and kept files share it.

    PlacedLayer(image="lamp.png", anchor="bottom", offset=(0, -20), width=300, shadow=Shadow(blur=12))

Pixels, degrees clockwise, and shares of 0 to 1. `images.layout` says what the fields mean on a canvas.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, cast

from pydantic import ConfigDict, Field, model_validator

from layerdiffuse_mcp.api.fields import Omittable, OneOf, bounded, near
from layerdiffuse_mcp.api.lenient import Lenient
from layerdiffuse_mcp.wording import quoted

MAX_LAYERS = 64
MAX_SIDE = 30_000  # what PSD allows
MAX_SCALE = 64
MAX_PAD = 4096
MAX_BLUR, MAX_SPREAD = 200, 100

COMPOSED = ("png", "webp", "jpg", "psd", "ora")
"""Formats that compositions are written in."""
BLENDS = ("normal", "multiply", "screen", "overlay", "soft-light", "add")
"""`images.blend` computes them."""
FITS = ("contain", "cover", "stretch")
FLIPS = ("none", "horizontal", "vertical", "both")
ANCHORS = {
    "top-left": (0.0, 0.0), "top": (0.5, 0.0), "top-right": (1.0, 0.0),
    "left": (0.0, 0.5), "center": (0.5, 0.5), "right": (1.0, 0.5),
    "bottom-left": (0.0, 1.0), "bottom": (0.5, 1.0), "bottom-right": (1.0, 1.0),
}  # fmt: skip
"""Shares of the room left over that lie left of a layer and above it."""


Pixels = Annotated[int, Field(ge=-MAX_SIDE, le=MAX_SIDE)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
CanvasSize = Annotated[str, Field(pattern=r"^[0-9]{1,5}x[0-9]{1,5}$")]
Colour = Annotated[str, Field(min_length=1, max_length=50)]
Anchor = Annotated[str, OneOf(tuple(ANCHORS), "anchor")]
Fit = Annotated[str, OneOf(FITS, "fit")]
Flip = Annotated[str, OneOf(FLIPS, "flip")]
Blend = Annotated[str, OneOf(BLENDS, "blend mode")]


class Options(Lenient):
    """An object of an agent's; a field that it has not is refused with those that it has."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    what: ClassVar[str] = "object"

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            for name in given:
                if name not in cls.model_fields:
                    raise ValueError(f"a {cls.what} has no {quoted(name)}. {near(str(name), cls.model_fields)}")
        return given

    def said(self) -> dict[str, Any]:
        """The fields that were given, as JSON values."""
        return self.model_dump(mode="json", exclude_unset=True, exclude_none=True)


class Shadow(Options):
    """What a layer throws onto those below: its silhouette, moved, grown and blurred."""

    what: ClassVar[str] = "shadow"

    dx: Annotated[Pixels, Field(description="To the right")] = 0
    dy: Annotated[Pixels, Field(description="Down")] = 8
    blur: Annotated[float, bounded(0, MAX_BLUR, "Pixels over which the edge fades: twice the Gaussian's deviation")] = (
        12
    )
    spread: Annotated[int, bounded(0, MAX_SPREAD, "Pixels by which it is larger than the layer")] = 0
    colour: Annotated[Colour, Field(description="A name or #rrggbb")] = "black"
    opacity: Annotated[float, bounded(0, 1, "Times the layer's own")] = 0.5


class LayerOptions(Options):
    """How a picture is changed and where it goes. Each field is optional: one that is left out changes nothing."""

    what: ClassVar[str] = "layer"

    name: Omittable[
        Annotated[str, Field(min_length=1, max_length=100, description="Its own name; default: the file's")]
    ] = None
    x: Omittable[Annotated[Pixels, Field(description="Left edge on the canvas; default 0")]] = None
    y: Omittable[Annotated[Pixels, Field(description="Top edge on the canvas; default 0")]] = None
    anchor: Omittable[
        Annotated[Anchor, Field(description="Instead of x and y: side or corner of the canvas that it lies against")]
    ] = None
    offset: Omittable[
        Annotated[tuple[Pixels, Pixels], Field(description="With anchor: pixels to the right and down")]
    ] = None
    width: Omittable[Annotated[Side, Field(description="Pixels; alone it keeps the proportions")]] = None
    height: Omittable[Annotated[Side, Field(description="Pixels; alone it keeps the proportions")]] = None
    fit: Omittable[
        Annotated[
            Fit, Field(description="With width and height: contain (default) stays within, cover fills and is cropped")
        ]
    ] = None
    scale: Omittable[
        Annotated[
            float,
            Field(gt=0, le=MAX_SCALE, allow_inf_nan=False, description="Factor of its size, instead of width, height"),
        ]
    ] = None
    rotate: Omittable[Annotated[float, bounded(-360, 360, "Degrees clockwise; x and y are of what comes out")]] = None
    flip: Omittable[Annotated[Flip, Field(description="Mirrored left to right (horizontal), upside down, or both")]] = (
        None
    )
    opacity: Omittable[Annotated[float, bounded(0, 1, "0 is invisible, 1 (default) as it is")]] = None
    blend: Omittable[Annotated[Blend, Field(description="How its colour meets what lies below; default normal")]] = None
    tint: Omittable[
        Annotated[Colour, Field(description="Colour, as #0050ff: it gets this hue, light and shade stay; or none")]
    ] = None
    shadow: Omittable[
        Annotated[Shadow, Field(description="Drop shadow; {} is soft, black and below; opacity 0: none")]
    ] = None
    defringe: Omittable[Annotated[bool, Field(description="Take an old background's colour out of the soft edge")]] = (
        None
    )
    visible: Omittable[Annotated[bool, Field(description="false hides it; psd and ora keep it hidden")]] = None

    @property
    def throws(self) -> Shadow | None:
        """Its shadow, if there is one to be seen."""
        return self.shadow if self.shadow and self.shadow.opacity else None

    @model_validator(mode="after")
    def _consistent(self) -> "LayerOptions":
        if self.anchor is not None and not (self.x is None and self.y is None):
            raise ValueError("give x and y, or anchor (moved by offset), not both")
        if self.offset is not None and self.anchor is None:
            raise ValueError('offset moves an anchored layer: give anchor too, such as "center", or x and y instead')
        if self.scale is not None and not (self.width is None and self.height is None):
            raise ValueError("give scale, or width and height, not both")
        if self.fit is not None and (self.width is None or self.height is None):
            raise ValueError("fit needs both width and height: one alone keeps the proportions")
        return self


class PlacedLayer(LayerOptions):
    """A picture and where it goes."""

    alone: ClassVar[str | None] = "image"

    image: Annotated[str, Field(min_length=1, max_length=4096, description="Path or image id of a picture")]


class Canvas(Options):
    """What the layers lie on."""

    what: ClassVar[str] = "canvas"
    alone: ClassVar[str | None] = "size"

    size: Omittable[
        Annotated[
            CanvasSize,
            Field(
                description="\"1200x630\"; default: a new background picture's, else source's, else what holds all "
                "layers, and their shadows where no opaque layer below fills it"
            ),
        ]
    ] = None
    trim: Annotated[bool, Field(description="Cut the result to what is visible of the layers")] = False
    pad: Annotated[int, bounded(0, MAX_PAD, "Pixels to add on every side, after trimming")] = 0

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Width and height, if they are given."""
        return pixels_of(self.size)


def pixels_of(size: str | None) -> tuple[int, int] | None:
    """Width and height of a canvas, if they are given."""
    if size is None:
        return None
    width, height = size.split("x")
    return int(width), int(height)


UNCHANGED = LayerOptions()
FITTING = Canvas()
_EXCLUDE = {
    "x": ("anchor", "offset"), "y": ("anchor", "offset"), "anchor": ("x", "y"),
    "scale": ("width", "height", "fit"), "width": ("scale",), "height": ("scale",),
    "size": ("trim",), "trim": ("size",),
}  # fmt: skip
"""What a field of a layer, or of a canvas, replaces beside itself."""


def merged(old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """An object's fields with some of them changed; a place or size replaces another way of saying it."""
    dropped = {other for name, value in changes.items() if value is not False for other in _EXCLUDE.get(name, ())}
    kept = {name: value for name, value in old.items() if name not in dropped}
    for name, value in changes.items():
        before = kept.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = {**cast(Mapping[str, Any], before), **cast(Mapping[str, Any], value)}
        kept[name] = value
    return kept
