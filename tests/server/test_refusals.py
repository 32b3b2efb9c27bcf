"""Bad input: each is an error that names what is allowed, writes nothing and leaves the server ready."""

import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.server.mcpserver.exceptions import ToolError

from layerdiffuse_mcp.server.app import create_server
from layerdiffuse_mcp.settings import Settings
from tests.results import text_of

Connect = Callable[..., AbstractAsyncContextManager[Client]]

pytestmark = pytest.mark.anyio

DRAW, CUP = "generate_transparent", {"prompt": "a cup"}
BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "no prompt": (DRAW, {}, "generate_transparent needs prompt"),
    "an empty prompt": (DRAW, {"prompt": "  "}, "prompt is empty"),
    "an endless prompt": (DRAW, {"prompt": "a" * 20_001}, "at most 20000 characters"),
    "a width of nothing": (DRAW, {**CUP, "size": "0x512"}, "from 16 to 2048 pixels. compose_layers"),
    "a width of 7": (DRAW, {**CUP, "size": "7x512"}, "from 16 to 2048 pixels. compose_layers"),
    "no steps": (DRAW, {**CUP, "options": {"steps": 0}}, "options.steps must be at least 1"),
    "too many steps": (DRAW, {**CUP, "options": {"steps": 10_000}}, "must be at most 150"),
    "a seed below all": (DRAW, {**CUP, "seed": -2}, "seed must be at least -1"),
    "an unknown sampler": (
        "generate_transparent",
        {**CUP, "options": {"sampler": "Euler b"}},
        "Did you mean Euler a",
    ),
    "an unknown schedule": (
        "generate_transparent",
        {**CUP, "options": {"schedule": "Karas"}},
        "Did you mean Karras",
    ),
    "an unknown model": (DRAW, {**CUP, "options": {"model": "poket"}}, "Did you mean pocket?"),
    "a model that is not here": (
        "generate_transparent",
        {**CUP, "options": {"model": "realvisxl-v4"}},
        "pocket",
    ),
    "a task the model cannot do": (
        "extract_layer",
        {**CUP, "blended": "here.png", "foreground": "here.png"},
        "does not do extract_background (extract_layer): it is for generate_transparent, ",
    ),
    "a parameter of a tool without": (
        "server_status",
        {"all": True},
        "no parameter 'all'. It takes none: leave it out.",
    ),
    "a list of LoRAs": (DRAW, {**CUP, "options": {"loras": ["icons"]}}, 'as in {"name": value}'),
    "a set of nothing": ("generate_set", {"subjects": []}, "say what to draw"),
    "yes for a number": (DRAW, {**CUP, "seed": True}, "seed: give a number, not true."),
    "yes for a number within": (DRAW, {**CUP, "options": {"steps": True}}, "options.steps: give a number, not true."),
    "a colour of another language": ("cut_out", {"image": "here.png", "background": "himmelblau"}, "English name such"),
    "a colour without its numbers": ("cut_out", {"image": "here.png", "background": "rgba()"}, "'rgba()' is not known"),
    "a layer's colour": (
        "compose_layers",
        {"layers": [{"image": "here.png", "colour": "red"}]},
        "Did you mean tint?",
    ),
    "a colour without its sign": ("cut_out", {"image": "here.png", "background": "0a3d62"}, 'give "#0a3d62"'),
    "an unknown parameter": (DRAW, {**CUP, "options": {"stepps": 3}}, "Did you mean steps"),
    "a word for a number": (
        "generate_transparent",
        {**CUP, "options": {"steps": "many"}},
        "must be a whole number",
    ),
    "a wait for ever": (DRAW, {**CUP, "output": {"wait_seconds": 1e9}}, "at most 600"),
    "no picture to change": ("edit_transparent", {"prompt": "x"}, "edit_transparent needs image"),
    "a picture out of bounds": ("edit_transparent", {**CUP, "image": "/etc/passwd"}, "may be read"),
    "a picture up and away": ("edit_transparent", {**CUP, "image": "../../../etc/passwd"}, "may be read"),
    "a picture that is missing": ("edit_transparent", {**CUP, "image": "nothing.png"}, "There is no file"),
    "a picture of no job": ("edit_transparent", {**CUP, "image": "job-1234-1"}, "There is no job"),
    "a blended picture alone": ("extract_layer", {**CUP, "blended": "here.png"}, "got blended"),
    "a latent that is missing": ("decode_transparent_latent", {"latent": "none.safetensors"}, "There is no file"),
    "an unknown job": ("get_job", {"job_ids": ["job-none"]}, "There is no job 'job-none'"),
    "an unknown job to stop": ("cancel_job", {"job_id": "job-none"}, "There is no job 'job-none'"),
    "an unknown state": ("list_jobs", {"status": "lost"}, "'queued', 'running'"),
    "an unknown model to prepare": ("prepare_model", {"model": "poket"}, "pocket"),
    "an unknown model to unload": ("unload_models", {"model": "poket"}, "pocket"),
}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A picture that may be read."""
    from PIL import Image

    path = tmp_path / "out" / "here.png"
    path.parent.mkdir()
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(path)
    return path


async def test_bad_input_is_refused_in_words_and_the_next_call_works(connect: Connect, here: Path):
    async with connect() as client:
        for name, (tool, arguments, words) in BAD.items():
            result = await client.call_tool(tool, arguments)
            assert result.is_error, name
            assert words in text_of(result), f"{name}: {text_of(result)}"
            assert "Traceback" not in text_of(result)
            assert "pydantic" not in text_of(result)
        listed: Any = (await client.call_tool("list_jobs", {})).structured_content
        assert listed["total"] == 0
        fine = await client.call_tool(DRAW, {"prompt": "steps 1"})
        assert not fine.is_error
    assert list(here.parent.iterdir()) == [here]


async def test_a_link_out_of_the_allowed_folders_is_refused(connect: Connect, here: Path):
    link = here.with_name("link.png")
    link.symlink_to("/etc/passwd")
    async with connect() as client:
        result = await client.call_tool("edit_transparent", {**CUP, "image": str(link)})
    assert result.is_error
    assert "may be read" in text_of(result)


@pytest.mark.parametrize(
    ("name", "words"),
    [("generate_blended", r'want=\["blended"\] of'), ("list_model", "Did you mean list_models")],
)
async def test_a_tool_that_there_is_not_says_what_to_call_instead(name: str, words: str, settings: Settings):
    with pytest.raises(ToolError, match=words):
        await create_server(settings).call_tool(name, CUP)


@pytest.mark.parametrize("value", [math.nan, math.inf])
async def test_what_is_no_number_is_refused(value: float, settings: Settings):
    """Clients send NaN as null; a careless one's is refused all the same."""
    given = {**CUP, "image": "x.png", "options": {"guidance_scale": value}}
    with pytest.raises(ToolError, match="must be a finite number"):
        await create_server(settings).call_tool("edit_transparent", given)
