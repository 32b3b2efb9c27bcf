"""The viewer, an MCP App: one page that shows what tools made, in clients that draw such pages.

    server = MCPServer(..., extensions=[viewer()])
    Row(drawing.generate_transparent, "Draw a transparent picture", WRITES, shown=True)    # says so in its `_meta.ui`

The page (`view/`) has no libraries and loads nothing: styles and scripts are inside, pictures come through the host by
`resources/read`, and what a person does there are calls of the same tools. Where `_meta.ui` stands does not depend on
the client: in the earlier era of the protocol nobody announces extensions, the list of tools may be cached for all, and
a client without apps passes it over. Results are the same for every client.
"""

import functools
import re
from pathlib import Path
from typing import Any

from mcp.server.apps import Apps, ResourceCsp

VIEW = "ui://layerdiffuse/view.html"
SHOWN: dict[str, Any] = {"ui": {"resourceUri": VIEW}}
"""`_meta` of a tool whose results the page shows."""
NOWHERE = ResourceCsp(connect_domains=[], resource_domains=[], frame_domains=[], base_uri_domains=[])
"""What the page may load: nothing, from nowhere."""
_FOLDER = Path(__file__).parent / "view"


@functools.cache
def page(name: str = "view.html") -> str:
    """A page of ours with its styles and scripts inside."""
    return re.sub(r"/\* (\w+\.(?:css|js)) \*/", lambda part: _text(part[1]), _text(name))


def viewer() -> Apps:
    """The extension with the page."""
    apps = Apps()
    apps.add_html_resource(
        VIEW,
        page(),
        name="view",
        title="Viewer",
        description="Shows pictures and their layers on any background",
        csp=NOWHERE,
        prefers_border=True,
    )
    return apps


def _text(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
