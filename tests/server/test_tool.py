"""What every tool does with what it is given: it is taken as it was meant, or its true form is said."""

import logging
import re
from pathlib import Path
from typing import Annotated, Any

import pytest
from mcp import Client
from mcp.server.mcpserver import MCPServer
from mcp_types import CallToolResult
from PIL import Image

from layerdiffuse_mcp.server.tool import READS, Row
from layerdiffuse_mcp.server.tools.models import ServerStatus
from layerdiffuse_mcp.server.tools.parameters import Options, fields_of
from tests.results import facts_of, text_of

pytestmark = pytest.mark.anyio

DRAW, CUP = "generate_transparent", {"prompt": "a cup"}


@pytest.fixture
def lamp(tmp_path: Path) -> str:
    """A picture that may be read."""
    path = tmp_path / "lamp.png"
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(path)
    return str(path)


async def test_usual_wrong_shapes_are_taken_as_they_are_meant(client: Client, lamp: str):
    sheet = await client.call_tool("make_sheet", {"images": [lamp, {"image": lamp, "name": "b"}], "anchor": "Top-Left"})
    assert [frame["name"] for frame in facts_of(sheet)["frames"]] == ["lamp", "b"]
    output = {"format": "PSD", "name": "poster"}
    layers = [lamp, {"image": lamp, "shadow": True, "anchor": "bottom_right"}]
    composed = await client.call_tool("compose_layers", {"layers": layers, "canvas": "60x40", "output": output})
    facts = facts_of(composed)
    assert (facts["width"], facts["height"], Path(facts["path"]).suffix) == (60, 40, ".psd")
    alone = facts_of(await client.call_tool("compose_layers", {"layers": lamp, "output": {"format": "jpeg"}}))
    assert (alone["width"], Path(alone["path"]).suffix) == (8, ".jpg")


async def test_a_drawing_takes_names_as_other_programs_write_them(client: Client):
    options = {"sampler": "DPM++ 2M Karras", "model": "POCKET", "detail": 2}
    asked = fields_of("x", Options.model_validate(options))
    assert (asked["sampler"], asked["schedule"], asked["detail"]) == ("DPM++ 2M", "Karras", {"scale": 2})
    drawn = facts_of(await client.call_tool(DRAW, {"prompt": "square red", "options": options}))
    again = facts_of(await client.call_tool("get_job", {"job_ids": drawn["job_id"]}))["jobs"]
    assert [job["status"] for job in again] == ["done"]
    listed = facts_of(await client.call_tool("list_jobs", {"status": "Done"}))
    assert drawn["job_id"] in [job["job_id"] for job in listed["jobs"]]


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "no object": (
        "make_sheet",
        {"images": [3, 4, 5]},
        'images.0 must be an object, as in {"image": ...} (got 3); the same is wrong in 2 more.',
    ),
    "a missing field": (
        "compose_layers",
        {"layers": [{"path": "a.png"}]},
        "layers.0 of compose_layers needs image, and has no parameter 'path'. Did you mean image? Allowed:",
    ),
    "a list for an object": (DRAW, {**CUP, "output": ["a"]}, "output must be an object, as in {"),
    "two schedules": (
        DRAW,
        {**CUP, "options": {"sampler": "DPM++ 2M Karras", "schedule": "Beta"}},
        "is DPM++ 2M with the schedule Karras, and schedule is 'Beta'",
    ),
    "another sampler": (DRAW, {**CUP, "options": {"sampler": "DPM++ 2M Kerras"}}, "Allowed: DPM++ 2M, DPM++ 2M SDE"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_cannot_be_told_is_refused_by_its_true_form(client: Client, case: str):
    tool, arguments, says = WRONG[case]
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    assert says in text_of(result)


UNFORESEEN = {
    "path": (PermissionError(13, "Permission denied", "/models"), r"could not use /models \(Permission denied\)"),
    "no path": (OSError(5, "Input/output error"), r"failed unexpectedly \(OSError: .*Input/output error\)"),
    "long": (ValueError("x" * 9000), r"failed unexpectedly \(ValueError: x{79}…\)"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("case", UNFORESEEN)
async def test_an_error_that_nobody_foresaw_is_told_in_words_and_logged(case: str, caplog: pytest.LogCaptureFixture):
    error, words = UNFORESEEN[case]

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
