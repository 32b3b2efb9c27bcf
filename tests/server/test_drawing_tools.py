"""What drawing tools take, in the form that they take it, and what they say of the old form and of mistakes."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from mcp import Client
from PIL import Image

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.server.app import create_server
from layerdiffuse_mcp.server.tools.parameters import SHAPES, Options, fields_of, width_and_height, without_tags
from layerdiffuse_mcp.settings import Settings
from tests.results import facts_of, text_of

Connect = Callable[..., AbstractAsyncContextManager[Client]]

DRAW, EDIT = "generate_transparent", "edit_transparent"
X = {"prompt": "x"}
SAID: dict[str, tuple[str, dict[str, Any], str]] = {
    "steps beside options": (DRAW, {**X, "steps": 3}, "`steps` is now `options.steps`"),
    "a model beside options": (EDIT, {**X, "image": "a.png", "model": "pocket"}, "`model` is now `options.model`"),
    "a wait beside output": (DRAW, {**X, "wait_seconds": 3}, "`wait_seconds` is now `output.wait_seconds`"),
    "a width": (DRAW, {**X, "width": 512, "height": 512}, '`width` is now `size`, as in size="1024x768"'),
    "a recipe": (DRAW, {**X, "recipe_from": "a.png"}, "now the tool redraw_image"),
    "a layer's own prompt": ("generate_layers", {**X, "background_prompt": "y"}, "options.layer_prompts.background"),
    "a seed in options": (DRAW, {**X, "options": {"seed": 3}}, "`options.seed` is now `seed`, beside `options`"),
    "a preview in options": (DRAW, {**X, "options": {"preview": False}}, "`options.preview` is now `output.preview`"),
    "one job's id": ("get_job", {"job_id": "job-1"}, "`job_id` is now `job_ids`, a list"),
    "an option with a slip": (DRAW, {**X, "options": {"sampeler": "Euler"}}, "Did you mean sampler"),
    "a LoRA's field with a slip": (
        DRAW, {**X, "options": {"loras": [{"name": "a", "weight": 1}]}}, "options.loras must be an object",
    ),
    "a method with a slip": (DRAW, {**X, "options": {"method": "layer_sd15_joined"}}, "Did you mean layer_sd15_joint"),
    "a size that is none": (DRAW, {**X, "size": "large"}, "size 'large' is not understood"),
    "a word for a size with a slip": (DRAW, {**X, "size": "landscap"}, "landscape"),
    "a layer that is not drawn": (
        "generate_layers", {**X, "options": {"layer_prompts": {"sky": "blue"}}}, "Allowed: foreground",
    ),
    "a prompt of another layer": (
        DRAW, {**X, "options": {"layer_prompts": {"background": "blue"}}}, "and no background: leave out that",
    ),
    "a strength without a picture": (DRAW, {**X, "options": {"strength": 0.3}}, "without a given picture"),
    "a word for an object": (DRAW, {**X, "options": "steps=3"}, "options must be an object"),
    "an address": (EDIT, {**X, "image": "https://example.org/a.png"}, "addresses are not fetched"),
    "data in the call": (EDIT, {**X, "image": "data:image/png;base64,AAAA"}, "addresses are not fetched"),
    "a family that is not here": (DRAW, {**X, "options": {"model": "sdxl"}}, "Fetch it with what it needs"),
    "how large it is": (DRAW, {**X, "options": {"model": "sdxl"}}, " GB from the hub"),
    "a family that nobody knows": (DRAW, {**X, "options": {"model": "sd3"}}, "prepare_model with model='sdxl' ("),
    "nothing to draw again": ("redraw_image", {}, "either image or parameters"),
    "two things to draw again": ("redraw_image", {"image": "a.png", "parameters": "a"}, "either image or parameters"),
}  # fmt: skip

pytestmark = pytest.mark.anyio


async def test_what_is_wrong_is_said_in_our_words_and_where_it_belongs(connect: Connect):
    async with connect() as client:
        for name, (tool, arguments, words) in SAID.items():
            result = await client.call_tool(tool, arguments)
            assert result.is_error, name
            assert words in text_of(result), f"{name}: {text_of(result)}"
            for inner in ("Input should", "Extra inputs", "validation error", "pydantic"):
                assert inner not in text_of(result), name
        assert facts_of(await client.call_tool("list_jobs", {}))["total"] == 0


async def test_a_colour_without_its_mark_is_told_with_it(connect: Connect, settings: Settings):
    settings.output.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", (8, 8)).save(settings.output / "dot.png")
    async with connect() as client:
        compose = {"layers": [{"image": "dot.png"}], "background": "0a3d62"}
        for tool, arguments in (
            ("compose_layers", compose),
            ("inspect_image", {"image": "dot.png", "background": "0a3d62"}),
        ):
            assert '"#0a3d62"' in text_of(await client.call_tool(tool, arguments))


@pytest.mark.parametrize("prompt", ['{"a": 1}', '["a", "b"]', "[1]"])
async def test_text_that_happens_to_be_json_stays_text(connect: Connect, prompt: str):
    async with connect() as client:
        drawn = await client.call_tool(DRAW, {"prompt": prompt, "output": {"preview": False}})
        assert not drawn.is_error, text_of(drawn)
        [job] = facts_of(await client.call_tool("list_jobs", {}))["jobs"]
        assert job["prompt"] == prompt
        missing = await client.call_tool(EDIT, {"prompt": prompt, "image": "a.png", "mask": prompt})
        assert "There is no file" in text_of(missing)


async def test_objects_that_come_as_json_text_are_read(connect: Connect):
    """Some clients send them so."""
    async with connect() as client:
        given = {"prompt": "steps 1", "options": '{"steps": 3}', "output": '{"preview": false, "name": null}'}
        assert not (await client.call_tool(DRAW, given)).is_error
        assert "`options.seed` is now" in text_of(await client.call_tool(DRAW, {**X, "options": '{"seed": 3}'}))


async def test_a_list_of_jobs_says_what_each_draws(connect: Connect):
    async with connect() as client:
        given = {"prompt": "steps 1", "seed": 7, "size": "128x64"}
        job_id = facts_of(await client.call_tool(DRAW, given))["job_id"]
        listed = await client.call_tool("list_jobs", {})
        [job] = facts_of(listed)["jobs"]
        assert (job["prompt"], job["size"], job["seed"]) == ("steps 1", "128x64", 7)
        assert f'{job_id} generate_transparent "steps 1", 128x64, seed 7: done' in text_of(listed)


async def test_several_jobs_are_waited_for_in_one_call(connect: Connect):
    async with connect() as client:
        later = {"output": {"wait_seconds": 0}}
        ids = [facts_of(await client.call_tool(DRAW, {"prompt": "draw", **later}))["job_id"] for _ in range(3)]
        result = await client.call_tool("get_job", {"job_ids": ids})
        jobs = facts_of(result)["jobs"]
        assert [(job["job_id"], job["status"]) for job in jobs] == [(job_id, "done") for job_id in ids]
        assert [job["images"][0]["number"] for job in jobs] == [1, 2, 3]
        assert all(f"\n{number}. job-" in text_of(result) for number in (1, 2, 3))


async def test_there_is_one_estimate_and_nothing_empty_in_what_is_said_of_a_running_job(connect: Connect):
    async with connect() as client:
        handle = await client.call_tool(DRAW, {"prompt": "steps 200", "output": {"wait_seconds": 2}})
        assert text_of(handle).count(" left") <= 1
        assert set(facts_of(handle)) == {"status", "job_id", "progress", "message"}
        await client.call_tool("cancel_job", {"job_id": facts_of(handle)["job_id"]})


async def test_every_drawing_tool_has_at_most_eight_parameters_and_says_what_comes_back():
    tools = {tool.name: tool for tool in await create_server(Settings()).list_tools()}
    drawing = [tool for tool in tools.values() if "output" in tool.input_schema["properties"]]
    assert len(drawing) >= 9
    for tool in drawing:
        properties = tool.input_schema["properties"]
        assert len(properties) <= 8
        assert "Returns" in (tool.description or "")
        for name, schema in properties.items():
            if schema["type"] in ("object", "array"):
                assert schema["examples"], name
    text = json.dumps([tool.model_dump(mode="json") for tool in drawing])
    assert "blended, the finished picture" in text


def undescribed(schema: dict[str, Any], where: str = "") -> list[str]:
    """The fields of an object, at any depth, that have no description."""
    found: list[str] = []
    for name, inner in schema.get("properties", {}).items():
        found += [] if inner.get("description") else [where + name]
        found += undescribed(inner, f"{where}{name}.")
    return found + (undescribed(schema["items"], where) if "items" in schema else [])


async def test_every_field_that_a_tool_takes_or_returns_is_described():
    found: list[str] = []
    for tool in await create_server(Settings()).list_tools():
        found += [f"{tool.name} takes {name}" for name in undescribed(tool.input_schema)]
        found += [f"{tool.name} returns {name}" for name in undescribed(tool.output_schema or {})]
    assert found == []


@pytest.mark.parametrize(("size", "expected"), [
    ("1024x768", (1024, 768)), ("64 X 2048", (64, 2048)), ("square", (128, 128)), ("portrait", (96, 160)),
    ("Landscape", (160, 96)), ("wide", (160, 96)),
])  # fmt: skip
def test_sizes_are_numbers_or_words(size: str, expected: tuple[int, int], settings: Settings):
    assert tuple(width_and_height(size, "pocket", settings).values()) == expected
    assert set(SHAPES) == {"square", "portrait", "landscape", "wide"}


@pytest.mark.parametrize("size", ["", "x", "15x64", "64x2049", "1024", "-64x64", "64.5x64", "99999999x64"])
def test_what_is_no_size_is_refused(size: str, settings: Settings):
    with pytest.raises(InvalidRequest, match="size"):
        width_and_height(size, "pocket", settings)


def test_loras_stand_in_the_prompt():
    options = Options.model_validate({"loras": {"ink": 0.5, "wash": 1}, "steps": 4})
    fields = fields_of("a cup", options)
    assert fields == {"prompt": "a cup <lora:ink:0.5> <lora:wash:1>", "steps": 4}
    assert without_tags(fields["prompt"]) == ("a cup", "<lora:ink:0.5> <lora:wash:1>")
