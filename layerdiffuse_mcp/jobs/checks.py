"""Which bases were tested for the mid-grey background that layer files need, and what came out.

    remembered(entry, (126, 127, 128))      # cli/check.py: once it is drawn
    doubts(entry)                           # what every drawing of a base that failed has to say

LayerDiffuse's latents are those of the subject on a plain grey; a base that draws another background with the layer
file has no place for them, and its cut-outs fail. An answer counts for the very file that was tested.
"""

from typing import TYPE_CHECKING, Any

from layerdiffuse_mcp.families.entries import ModelEntry
from layerdiffuse_mcp.outputs.state import recall, remember

if TYPE_CHECKING:
    from layerdiffuse_mcp.images.alpha import Bytes

FILE = "checks.json"
GREY = 0x75, 0x89
"""Between which all three channels of the background lie, of 255."""
Colour = tuple[int, int, int]


def passes(background: Colour) -> bool:
    """Whether a background is a mid-grey."""
    return all(GREY[0] <= channel <= GREY[1] for channel in background)


def background_in(pixels: "Bytes") -> Colour:
    """The colour along the edges of a picture (H, W, C), uint8: in the middle of what is there, a channel at a time."""
    import numpy as np  # takes 0.1 s, and most drawings only look an answer up

    margin = max(1, min(pixels.shape[:2]) // 32)
    sides = pixels[:margin], pixels[-margin:], pixels[:, :margin], pixels[:, -margin:]
    edge = np.concatenate([side[..., :3].reshape(-1, 3) for side in sides])
    red, green, blue = (int(level) for level in np.median(edge, axis=0))
    return red, green, blue


def remembered(entry: ModelEntry, background: Colour) -> None:
    """Keep the answer for a base that is on this machine."""
    remember(FILE, recall(FILE) | {entry.name: {"background": [*background], "file": _identity(entry)}})


def background_of(entry: ModelEntry) -> Colour | None:
    """The background that a base's file drew when it was tested; None where it was not."""
    known = recall(FILE).get(entry.name)
    match known:
        case {"background": [int(red), int(green), int(blue)], "file": file} if file == _identity(entry):
            return red, green, blue
        case _:
            return None


def doubts(entry: ModelEntry) -> tuple[str, ...]:
    """What to say of drawings with a base that failed."""
    background = background_of(entry)
    if background is None or passes(background):
        return ()
    return (
        f"The base {entry.name} failed its test: it draws its background {in_hex(background)} where layer files need "
        f"{needed()}, so that cut-outs may be opaque or eaten away. Another base of its family may do better.",
    )


def needed() -> str:
    """The range, in words."""
    return " to ".join(in_hex((level, level, level)) for level in GREY)


def in_hex(colour: Colour) -> str:
    """A colour as #rrggbb."""
    return "#" + "".join(f"{channel:02x}" for channel in colour)


def _identity(entry: ModelEntry) -> list[Any] | None:
    """What tells a base's file from another in its place, without reading it."""
    try:
        facts = entry.path.stat() if entry.path else None
    except OSError:
        return None
    return [facts.st_size, facts.st_mtime_ns] if facts else None
