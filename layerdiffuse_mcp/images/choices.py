"""The words for where a picture goes in a cell, how large it gets, and how it is shown; nothing heavy is imported."""

ANCHORS: dict[str, tuple[float, float]] = {
    "top-left": (0.0, 0.0), "top": (0.5, 0.0), "top-right": (1.0, 0.0),
    "left": (0.0, 0.5), "center": (0.5, 0.5), "right": (1.0, 0.5),
    "bottom-left": (0.0, 1.0), "bottom": (0.5, 1.0), "bottom-right": (1.0, 1.0),
}  # fmt: skip
"""Shares of the room left over that lie left of a picture and above it."""
FITS = {
    "shrink": "a picture larger than the cell is made smaller",
    "contain": "each fills its cell, made smaller or larger",
    "together": "one factor for all, so that the largest fills its cell",
}
"""How pictures come to the size of a cell; their proportions stay."""
MAX_CELL = 4096
"""Pixels of a cell's side, at most."""
VIEWED = {"png": "image/png", "webp": "image/webp", "jpg": "image/jpeg"}
"""Formats that a picture is shown in, and their media types."""
