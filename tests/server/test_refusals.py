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

BAD = {
    "no prompt": ("generate_transparent", {}, "prompt is empty"),
    "an empty prompt": ("generate_transparent", {"prompt": "  "}, "prompt is empty"),
    "an endless prompt": ("generate_transparent", {"prompt": "a" * 20_001}, "at most 20000 characters"),
    "a width of nothing": ("generate_transparent", {"prompt": "x", "width": 0}, "greater than or equal to 64"),
    "a width of 7": ("generate_transparent", {"prompt": "x", "width": 7}, "greater than or equal to 64"),
    "no steps": ("generate_transparent", {"prompt": "x", "steps": 0}, "greater than or equal to 1"),
    "too many steps": ("generate_transparent", {"prompt": "x", "steps": 10_000}, "less than or equal to 150"),
    "a seed below all": ("generate_transparent", {"prompt": "x", "seed": -2}, "greater than or equal to -1"),
    "an unknown sampler": ("generate_transparent", {"prompt": "x", "sampler": "Euler b"}, "Did you mean Euler a"),
    "an unknown schedule": ("generate_transparent", {"prompt": "x", "schedule": "Karas"}, "Did you mean Karras"),
    "an unknown model": ("generate_transparent", {"prompt": "x", "model": "poket"}, "pocket"),
    "a model that is not here": ("generate_transparent", {"prompt": "x", "model": "realvisxl-v4"}, "pocket"),
    "a task the model cannot do": (
        "extract_layer",
        {"prompt": "x", "blended": "here.png", "foreground": "here.png"},
        "family sd15, which has no layer files for extract_background, and no model on this machine can do it yet",
    ),
    "an unknown parameter": ("generate_transparent", {"prompt": "x", "stepps": 3}, "Did you mean steps"),
    "a word for a number": ("generate_transparent", {"prompt": "x", "steps": "many"}, "valid integer"),
    "a wait for ever": ("generate_transparent", {"prompt": "x", "wait_seconds": 1e9}, "less than or equal to 600"),
    "no picture to change": ("edit_transparent", {"prompt": "x"}, "edit_transparent needs image"),
    "a picture out of bounds": ("edit_transparent", {"prompt": "x", "image": "/etc/passwd"}, "may be read"),
    "a picture up and away": ("edit_transparent", {"prompt": "x", "image": "../../../etc/passwd"}, "may be read"),
    "a picture that is missing": ("edit_transparent", {"prompt": "x", "image": "nothing.png"}, "There is no file"),
    "a picture of no job": ("edit_transparent", {"prompt": "x", "image": "job-1234-1"}, "There is no job"),
    "both layers to blend": (
        "generate_blended",
        {"prompt": "x", "foreground": "here.png", "background": "here.png"},
        "foreground or background, and got background and foreground",
    ),
    "a blended picture alone": ("extract_layer", {"prompt": "x", "blended": "here.png"}, "got blended"),
    "a latent that is missing": ("decode_transparent_latent", {"latent": "none.safetensors"}, "There is no file"),
    "an unknown job": ("get_job", {"job_id": "job-none"}, "There is no job 'job-none'"),
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
        fine = await client.call_tool("generate_transparent", {"prompt": "steps 1"})
        assert not fine.is_error
    assert list(here.parent.iterdir()) == [here]


async def test_a_link_out_of_the_allowed_folders_is_refused(connect: Connect, here: Path):
    link = here.with_name("link.png")
    link.symlink_to("/etc/passwd")
    async with connect() as client:
        result = await client.call_tool("edit_transparent", {"prompt": "x", "image": str(link)})
    assert result.is_error
    assert "may be read" in text_of(result)


@pytest.mark.parametrize("value", [math.nan, math.inf])
async def test_what_is_no_number_is_refused(value: float, settings: Settings):
    """Clients send NaN as null; a careless one's is refused all the same."""
    with pytest.raises(ToolError, match="finite number"):
        await create_server(settings).call_tool("generate_transparent", {"prompt": "x", "guidance_scale": value})
