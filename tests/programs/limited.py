"""The real engine with little more memory than it begins with, until its process ends."""

import resource

import psutil

from layerdiffuse_mcp.engine.engine import Engine as Whole
from layerdiffuse_mcp.settings import Settings

ROOM = 600_000_000


class Engine(Whole):
    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        limit = psutil.Process().memory_info().vms + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
