"""What a picture is that holds no recipe, and what makes it again all the same.

    undrawn(file, path, index, opened_file, max_pixels).instead    # "It is a composition: compose_layers ..."

The file says whether it is a composition; all else the index knows of what was made here.
"""

import contextlib
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from layerdiffuse_mcp.errors import LayerDiffuseError
from layerdiffuse_mcp.images.tasks import COMPOSED
from layerdiffuse_mcp.outputs.index import Entry, Index
from layerdiffuse_mcp.outputs.removal import named
from layerdiffuse_mcp.outputs.sheets import SHEET

COMPOSITION = "It is a composition: compose_layers changes it, with this file as source, and redraw_image its layers."
INSTEAD = {
    SHEET: "It is a sheet: redraw one of the pictures in it, which are files of their own.",
    COMPOSED: (
        "It was put together of pictures and keeps no record of that: put them together again with compose_layers, or "
        "redraw one of them."
    ),
    "cutout": "It was cut out of a picture and not drawn: cut_out makes it again from that.",
    "decoded": "It was decoded from a latent: decode_transparent_latent makes it again from that.",
}
"""What to do with a picture that nothing was drawn for, by what it is."""
WITHOUT = "It was drawn here without metadata: draw it by its prompt again, with output.metadata full."
REWRITTEN = "It has been rewritten since it was made here, and its recipe is gone."
_MADE_AS = re.compile(r"[0-9]{6}-.+-(cutout|decoded)(?:-[0-9]+)?")


class Undrawn(NamedTuple):
    """The layers of the composition that a picture is, the lowest first, and what to do instead of redrawing it."""

    layers: tuple[str, ...] = ()
    instead: str | None = None


def undrawn(
    file: BinaryIO,
    path: Path,
    index: Index,
    open_other: Callable[[Path], AbstractContextManager[BinaryIO]],
    max_pixels: int,
) -> Undrawn:
    """What is known of an open picture without a recipe; nothing of one that was not made here.

    `open_other` opens what lies beside a PSD. It reads the index and the file, so it belongs in a thread.
    """
    from layerdiffuse_mcp.images.composition import kept_by
    from layerdiffuse_mcp.images.files import sha256
    from layerdiffuse_mcp.images.png import read_id

    with contextlib.suppress(LayerDiffuseError):
        layers = tuple(layer.label for layer in kept_by(file, path, open_other, max_pixels)[0].layers)
        return Undrawn(layers, COMPOSITION)
    with contextlib.suppress(LayerDiffuseError):
        entry = named(index, str(path)) or named(index, read_id(file, max_pixels) or "")
        if entry is not None:
            return Undrawn(instead=_instead(entry) if sha256(file) == entry.sha256 else REWRITTEN)
    return Undrawn()


def _instead(entry: Entry) -> str:
    made = _MADE_AS.fullmatch(entry.path.stem)
    return INSTEAD.get(made[1] if made else entry.role or "", WITHOUT)
