"""A server on HTTP within the tests' own process, and clients of it."""

import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import httpx2
import uvicorn
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from starlette.types import ASGIApp


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """Serves on a free port; the address of MCP there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        server.should_exit = True
        thread.join()


def bearing(token: str | None) -> dict[str, str]:
    """The header of a token."""
    return {"Authorization": f"Bearer {token}"} if token else {}


@asynccontextmanager
async def connected(url: str, mode: str, token: str | None = None) -> AsyncIterator[Client]:
    """A client of one protocol era, with a token or without; it reads no certificates, which takes long."""
    async with (
        httpx2.AsyncClient(headers=bearing(token), timeout=30, verify=False) as web,
        Client(streamable_http_client(url, http_client=web), mode=mode) as client,
    ):
        yield client
