"""What a tool call gave back: its text for the agent, its facts for programs, and its files."""

import os
from pathlib import Path
from typing import Any

from mcp_types import CallToolResult, TextContent


def text_of(result: CallToolResult) -> str:
    """The first content block, which stands alone."""
    first = result.content[0]
    assert isinstance(first, TextContent)
    return first.text


def facts_of(result: CallToolResult) -> dict[str, Any]:
    """The structured content of a call that went well."""
    assert not result.is_error, text_of(result)
    assert result.structured_content is not None
    return result.structured_content


def files_below(folder: Path) -> list[Path]:
    """All files, hidden ones too, also while others come and go; sorted."""
    return sorted(Path(root, name) for root, _, names in os.walk(folder) for name in names)
