"""The table of tools; one module a subject."""

from layerdiffuse_mcp.server.declare import Declaration
from layerdiffuse_mcp.server.tools import drawing, jobs, latents, models

TOOLS: tuple[Declaration, ...] = (*drawing.TOOLS, *latents.TOOLS, *jobs.TOOLS, *models.TOOLS)
"""Every tool, in the order in which clients list them."""
