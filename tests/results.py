"""What a tool call gave back: its text for the agent, its facts for programs, and its files."""

import os
from pathlib import Path
from typing import Any

from mcp_types import CallToolResult, TextContent
from PIL import Image


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


def check_files(folder: Path) -> None:
    """All files are whole pictures or latents: none is half, none is a temporary one."""
    for path in files_below(folder):
        assert path.suffix in (".png", ".safetensors"), path
        assert not any(part.startswith(".") for part in path.relative_to(folder).parts), path
        if path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()
