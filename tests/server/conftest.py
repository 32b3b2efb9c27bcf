"""Clients that talk in memory to a server whose engine obeys its prompt.

They speak today's protocol; what tests the protocol itself speaks both eras. A test has the `client` of its module, or
opens its own by `connect` where what others did there would show.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
from mcp import Client

from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.server.app import create_server
from layerdiffuse_mcp.settings import Settings
from tests.conftest import settings_in

ERAS = {"2026-07-28": "2026-07-28", "2025-11-25": "legacy"}

IN_BOTH = ("apps", "calls", "http", "protocol", "refusals", "resources", "sending")
"""The modules of this folder that speak both."""

Connect = Callable[..., AbstractAsyncContextManager[Client]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "era" in metafunc.fixturenames and metafunc.module.__name__.rpartition("test_")[2] in IN_BOTH:
        metafunc.parametrize("era", ERAS.values(), ids=ERAS.keys(), scope="module")


@pytest.fixture(scope="module")
def era() -> str:
    """The protocol era that the client speaks."""
    return "2026-07-28"


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


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory, rehearsal: str, era: str) -> AsyncIterator[Client]:
    """A client on a server for a whole module, which may read what the tests have in their folders."""
    kept = settings_in(tmp_path_factory.mktemp("kept"))
    settings = kept.model_copy(update={"read_dirs": (tmp_path_factory.getbasetemp(),)})
    async with Client(create_server(settings, lambda given: LocalBackend(given, rehearsal)), mode=era) as opened:
        yield opened
