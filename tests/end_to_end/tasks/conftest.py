"""A task as a script of calls: what an agent does through a real client, counted in calls and in bytes."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from mcp import Client
from mcp_types import CallToolResult

from tests.results import facts_of

WAIT = 600


@dataclass
class Script:
    """The calls of one task."""

    client: Client
    results: list[CallToolResult] = field(default_factory=list)

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """What a call returns as structured content; one that fails fails the task."""
        return facts_of(await self.result(tool, **arguments))

    async def result(self, tool: str, **arguments: Any) -> CallToolResult:
        """What a call returns, whatever it is."""
        self.results.append(await self.client.call_tool(tool, arguments))
        return self.results[-1]

    @property
    def calls(self) -> int:
        """How many there were."""
        return len(self.results)

    @property
    def bytes(self) -> int:
        """What the agent has been sent, as JSON."""
        return sum(len(one.model_dump_json(by_alias=True, exclude_none=True).encode()) for one in self.results)


@pytest.fixture
def script(client: Client) -> Script:
    """A task that has not begun."""
    return Script(client)
