"""A server in memory that is called without await: hypothesis draws and shrinks in ordinary functions."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import Client
from mcp_types import CallToolResult

from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.server.app import create_server
from layerdiffuse_mcp.settings import Settings
from tests.fuzz.examples import check_words
from tests.results import facts_of, text_of

PATIENCE = 60.0
"""Seconds within which every call answers on the busiest machine."""


class Server:
    """A server and its client, on an event loop in a thread of their own."""

    def __init__(self, portal: BlockingPortal, client: Client) -> None:
        self.portal, self.client = portal, client
        self.schemas: dict[str, dict[str, Any]] = {
            tool.name: tool.input_schema for tool in portal.call(client.list_tools).tools
        }
        """Of the arguments of each tool, as a client sees them."""

    def __repr__(self) -> str:  # for hypothesis, which shows all arguments of what fails
        return "server"

    def call(self, tool: str, arguments: dict[str, Any]) -> CallToolResult:
        """Call a tool. Its result can be sent, and if it is an error, says what was wrong."""
        result = self.portal.call(self._call, tool, arguments)
        json.loads(result.model_dump_json())
        if result.is_error:
            check_words(text_of(result))
        return result

    def wait_until_idle(self) -> None:
        """Returns once no job runs or waits: the server answers, and ends whatever was begun."""
        self.portal.call(self._wait_until_idle)

    async def _call(self, tool: str, arguments: dict[str, Any]) -> CallToolResult:
        with anyio.fail_after(PATIENCE):
            return await self.client.call_tool(tool, arguments)

    async def _wait_until_idle(self) -> None:
        with anyio.fail_after(PATIENCE):
            while True:
                status = facts_of(await self.client.call_tool("server_status", {}))
                if not status["running"] and not status["waiting"]:
                    return
                await anyio.sleep(0.01)


@contextmanager
def serve(settings: Settings) -> Generator[Server]:
    """A server whose engine obeys its prompt (tests/programs/rehearsal.py)."""
    server = create_server(settings, lambda given: LocalBackend(given, "rehearsal:Engine"))
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(Client(server)) as client:
        yield Server(portal, client)
