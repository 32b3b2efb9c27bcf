"""Clients of both protocol eras, talking in memory to a server whose engine obeys its prompt."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from mcp import Client

from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.server.app import create_server
from layerdiffuse_mcp.settings import Settings

ERAS = {"2026-07-28": "2026-07-28", "2025-11-25": "legacy"}

Connect = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture(params=ERAS.values(), ids=ERAS.keys())
def era(request: pytest.FixtureRequest) -> str:
    """The protocol era that the client speaks."""
    return request.param


@pytest.fixture
def connect(settings: Settings, rehearsal: str, era: str) -> Connect:
    """Opens a client on a new server; keyword arguments change the settings."""

    @asynccontextmanager
    async def open_client(**changes: object) -> AsyncIterator[Client]:
        changed = settings.model_copy(update=changes)
        server = create_server(changed, lambda given: LocalBackend(given, rehearsal))
        async with Client(server, mode=era) as client:
            yield client

    return open_client
