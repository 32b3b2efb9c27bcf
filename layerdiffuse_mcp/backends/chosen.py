"""The backend that the settings choose.

backend = chosen(settings)
"""

from layerdiffuse_mcp.backends.backend import Backend
from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.settings import Settings


def chosen(settings: Settings) -> Backend:
    """Workers on this machine, or on the nodes of a Ray cluster."""
    if settings.backend == "local":
        return LocalBackend(settings)
    from layerdiffuse_mcp.backends.ray import RayBackend

    return RayBackend(settings)
