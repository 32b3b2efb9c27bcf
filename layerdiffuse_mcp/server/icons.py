"""Icons that clients show: the server's own, and one for each kind of thing that it offers.

    MCPServer(..., icons=SERVER)
    icon = icons_for("drawing")            # of the tools in server/tools/drawing.py

Each is a data URI of less than 600 bytes, so that lists stay small and nothing is fetched: line drawings as SVG, with
few characters that a URI has to escape, and the server's own as PNG, which every client can show.
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from mcp_types import Icon


def _svg(path: str) -> Icon:
    """A line drawing of 24 x 24 units."""
    drawing = (
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0,0,24,24' fill='none' stroke='teal'>"
        f"<path stroke-width='2' d='{path}'/></svg>"
    )
    source = "data:image/svg+xml," + quote(drawing, safe="=:/,'")
    return Icon(src=source, mime_type="image/svg+xml")


def _png() -> Icon:
    data = base64.b64encode((Path(__file__).parent / "icon.png").read_bytes()).decode()
    return Icon(src=f"data:image/png;base64,{data}", mime_type="image/png", sizes=["32x32"])


PICTURE = _svg("M3,4h18v16H3zM3,17l6-6,5,5,3-3,4,4M15,9h2")
LAYERS = _svg("M12,3,2,8l10,5,10-5zM2,12l10,5,10-5M2,16l10,5,10-5")
DRAW = _svg("M4,20l1-5L16,4l4,4L9,19zM14,6l4,4")
CLOCK = _svg("M12,3a9,9,0,1,0,.1,0zM12,7v5l4,2")
MODEL = _svg("M12,2l9,5v10l-9,5-9-5V7zM3,7l9,5,9-5M12,12v10")

SERVER = [_png()]
"""The server's own: a disc that fades on a checkerboard."""

_BY_SUBJECT: Mapping[str, Icon] = {
    "drawing": DRAW,
    "redraw": DRAW,
    "sets": DRAW,
    "pictures": LAYERS,
    "cutouts": LAYERS,
    "sheets": LAYERS,
    "jobs": CLOCK,
    "history": CLOCK,
    "models": MODEL,
}
"""By the module of server/tools/ in which a tool stands."""


def icons_for(subject: str) -> list[Icon]:
    """The icon of tools on a subject: the name of their module."""
    return [_BY_SUBJECT.get(subject, PICTURE)]
