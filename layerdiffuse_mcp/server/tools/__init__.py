"""The table of tools; one module a subject."""

from layerdiffuse_mcp.server.declare import Declaration
from layerdiffuse_mcp.server.tools import drawing, jobs, latents, models, pictures

TOOLS: tuple[Declaration, ...] = (*drawing.TOOLS, *latents.TOOLS, *pictures.TOOLS, *jobs.TOOLS, *models.TOOLS)
"""Every tool, in the order in which clients list them."""
