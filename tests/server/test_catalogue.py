"""The public face: every tool's schema is on record, stands alone, and says what an agent has to know."""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp_types import Tool

from layerdiffuse_mcp.api.choices import SAMPLERS, SCHEDULES
from layerdiffuse_mcp.families import spec as families
from layerdiffuse_mcp.server.app import INSTRUCTIONS, create_server
from layerdiffuse_mcp.server.tools import TOOLS
from layerdiffuse_mcp.settings import Settings
from tests.results import text_of

Connect = Callable[..., AbstractAsyncContextManager[Client]]

SNAPSHOTS = Path(__file__).parent / "snapshots"
REWRITE = "LAYERDIFFUSE_REWRITE_SNAPSHOTS"
INSTRUCTIONS_LIMIT = 2_000
NAMES = [row.name for row in TOOLS]

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def tools() -> dict[str, Tool]:
    return {tool.name: tool for tool in anyio.run(create_server(Settings()).list_tools)}


def plain(tool: Tool) -> dict[str, Any]:
    return tool.model_dump(by_alias=True, mode="json", exclude_none=True)


@pytest.mark.parametrize("name", NAMES)
async def test_the_schema_of_a_tool_is_the_one_on_record(name: str, tools: dict[str, Tool]):
    """A change of the public face shows in the diff; set LAYERDIFFUSE_REWRITE_SNAPSHOTS=1 to record it."""
    path = SNAPSHOTS / f"{name}.json"
    now = json.dumps(plain(tools[name]), indent=2, ensure_ascii=False) + "\n"
    if os.environ.get(REWRITE):
        path.write_text(now)
    assert path.read_text() == now


def test_there_is_no_record_of_a_tool_that_is_gone():
    assert sorted(path.stem for path in SNAPSHOTS.glob("*.json")) == sorted(NAMES)


def words(schema: Any) -> Iterator[str]:
    """Every key of a schema, at any depth."""
    for key, value in schema.items() if isinstance(schema, dict) else enumerate(schema):
        if isinstance(key, str):
            yield key
        if isinstance(value, dict | list):
            yield from words(value)


@pytest.mark.parametrize("name", NAMES)
async def test_a_schema_stands_alone_and_says_what_is_required(name: str, tools: dict[str, Tool]):
    tool = tools[name]
    assert not {"$ref", "$defs"} & {*words(tool.input_schema), *words(tool.output_schema)}
    assert set(tool.input_schema["required"]) <= set(tool.input_schema["properties"])
    assert tool.input_schema["additionalProperties"] is False


async def test_null_is_as_good_as_left_out(connect: Connect):
    async with connect() as client:
        given = {"prompt": "steps 1", "seed": None, "options": {"steps": None}, "output": {"preview": None}}
        assert not (await client.call_tool("generate_layers", given)).is_error
        refused = await client.call_tool("edit_transparent", {"prompt": "x", "image": None})
    assert "edit_transparent needs image" in text_of(refused)


def test_the_tools_that_messages_name_for_tasks_exist():
    assert {*families.TOOLS} == {*families.Task}
    assert {*families.TOOLS.values()} <= {*NAMES}


def test_the_instructions_fit_into_their_budget_and_name_only_tools_that_exist():
    assert len(INSTRUCTIONS.encode()) <= INSTRUCTIONS_LIMIT
    words = {word.strip(".,:;()") for word in INSTRUCTIONS.split()}
    assert {word for word in words if "_" in word} <= {*NAMES, "job_id"}


@pytest.mark.parametrize("name", NAMES)
async def test_a_tool_has_a_title_hints_and_a_result_schema(name: str, tools: dict[str, Tool]):
    tool = tools[name]
    assert tool.title
    assert tool.description
    assert tool.annotations is not None
    assert tool.annotations.read_only_hint is not None
    assert (tool.output_schema or {})["type"] == "object"


@pytest.mark.parametrize("name", NAMES)
async def test_every_parameter_is_described_with_its_range(name: str, tools: dict[str, Tool]):
    for parameter, schema in tools[name].input_schema["properties"].items():
        assert len(schema["description"]) > 15, parameter
        assert "type" in schema, parameter
        if schema["type"] in ("integer", "number"):
            assert "minimum" in schema or "exclusiveMinimum" in schema, parameter
            assert "maximum" in schema, parameter


@pytest.mark.parametrize("name", NAMES)
async def test_a_tool_takes_few_parameters_and_shows_the_form_of_lists_and_objects(name: str, tools: dict[str, Tool]):
    properties = tools[name].input_schema["properties"]
    assert len(properties) <= 8
    for parameter, schema in properties.items():
        assert "examples" in schema or schema["type"] not in ("array", "object"), parameter


@pytest.mark.parametrize("name", NAMES)
async def test_the_description_of_a_tool_says_what_comes_back(name: str, tools: dict[str, Tool]):
    assert re.search(r"\b([Rr]eturns?|List)\b", tools[name].description or "")


@pytest.mark.parametrize("name", NAMES)
async def test_a_schema_says_no_name_twice(name: str, tools: dict[str, Tool]):
    for schema in (tools[name].input_schema, tools[name].output_schema):
        assert "title" not in words(schema)


@pytest.mark.parametrize("name", NAMES)
async def test_no_parameter_lies_deeper_than_agents_fill_in_well(name: str, tools: dict[str, Tool]):
    def depth(schema: dict[str, Any]) -> int:
        items = schema.get("items", {})  # those of no more than a type are said in the description
        parts = [*schema.get("properties", {}).values(), *([items] if len(items) > 1 else [])]
        return max((1 + depth(part) for part in parts), default=0)

    assert depth(tools[name].input_schema) <= 3


async def test_fields_that_lie_deeper_are_said_with_their_bounds_and_defaults(tools: dict[str, Tool]):
    layer = tools["compose_layers"].input_schema["properties"]["layers"]["items"]["properties"]
    assert layer["shadow"].keys() == {"type", "description"}
    assert "dy: Down, -30000 to 30000, default 8" in layer["shadow"]["description"]
    assert "colour: A name or #rrggbb, default black" in layer["shadow"]["description"]


async def test_fields_that_are_said_in_words_are_checked_as_others(connect: Connect):
    async with connect() as client:
        given = {"layers": [{"image": "a.png", "shadow": {"colr": "red"}}]}
        refused = await client.call_tool("compose_layers", given)
    assert refused.is_error
    assert "Did you mean colour?" in text_of(refused)


SMALL = 5_300
"""Characters of a tool that draws nothing: with one of them a client should not load what drawings return."""


@pytest.mark.parametrize("name", ["encode_transparent_image", "make_sheet", "prepare_model", "unload_models"])
async def test_a_tool_that_draws_nothing_is_small(name: str, tools: dict[str, Tool]):
    assert len(json.dumps(plain(tools[name]))) < SMALL


async def test_enums_are_the_tables(tools: dict[str, Tool]):
    properties = tools["generate_transparent"].input_schema["properties"]["options"]["properties"]
    assert properties["sampler"]["enum"] == list(SAMPLERS)
    assert properties["schedule"]["enum"] == list(SCHEDULES)


async def test_a_tool_that_writes_files_is_not_marked_read_only(tools: dict[str, Tool]):
    reading = {name for name, tool in tools.items() if tool.annotations and tool.annotations.read_only_hint}
    assert reading == {"get_job", "list_jobs", "list_models", "server_status", "find_images"} & set(NAMES) | (
        reading & {"inspect_image"}
    )
