"""A tool whose function fails in a way that nobody foresaw says so, and that is logged."""

import logging
import re
from typing import Annotated

import pytest
from mcp import Client
from mcp.server.mcpserver import MCPServer
from mcp_types import CallToolResult

from layerdiffuse_mcp.server.tool import READS, Row
from layerdiffuse_mcp.server.tools.models import ServerStatus
from tests.results import text_of

CASES = {
    "path": (PermissionError(13, "Permission denied", "/models"), r"could not use /models \(Permission denied\)"),
    "no path": (OSError(5, "Input/output error"), r"failed unexpectedly \(OSError: .*Input/output error\)"),
    "long": (ValueError("x" * 9000), r"failed unexpectedly \(ValueError: x{79}…\)"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("case", CASES)
async def test_an_error_that_nobody_foresaw_is_told_in_words_and_logged(case: str, caplog: pytest.LogCaptureFixture):
    error, words = CASES[case]

    def server_status() -> Annotated[CallToolResult, ServerStatus]:
        """Fail."""
        raise error

    server_status.__module__ = "layerdiffuse_mcp.server.tools.models"
    server = MCPServer("broken", tools=[Row(server_status, "Broken", READS).tool])
    with caplog.at_level(logging.ERROR):
        async with Client(server) as client:
            result = await client.call_tool("server_status", {})
    assert result.is_error
    assert re.search(f"server_status {words}", text_of(result))
    assert any(record.exc_info for record in caplog.records)
