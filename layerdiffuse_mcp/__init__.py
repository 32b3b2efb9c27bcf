"""Real transparency for AI agents: LayerDiffuse as an MCP server.

The package imports nothing heavy by itself; see `layerdiffuse_mcp.cli.parser` for the
command line, `layerdiffuse_mcp.server` for the MCP face and
`layerdiffuse_mcp.engine` for the models.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("layerdiffuse-mcp")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
