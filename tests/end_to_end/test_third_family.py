"""A family that somebody else's package brings, of layers that its model names: by its card and model file alone."""

import itertools
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from mcp import Client
from PIL import Image

from layerdiffuse_mcp.recipes.recipe import read_recipe
from tests.conftest import PROGRAMS
from tests.results import facts_of, text_of

pytestmark = pytest.mark.anyio

FAMILY = PROGRAMS / "third_family"
WAIT = {"wait_seconds": 600}
STROKES: dict[str, Any] = {"model": "strokes", "steps": 3}
HILLS: dict[str, Any] = {"prompt": "hills", "seed": 7, "options": STROKES, "output": WAIT}
NAMES = ["sky", "far hills", "a bird/plane"]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """An environment in which the family's package is installed."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(FAMILY), *sys.path]))}


@pytest.fixture(scope="module")
def inside(folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The tests of what happens in an engine, as they ended; they write a base of the family first."""
    below = f"--basetemp={folder / 'inside'}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", below, str(FAMILY / "inside.py")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)


@pytest.fixture(scope="module")
def strokes(folder: Path, inside: subprocess.CompletedProcess[str]) -> Path:
    """That base, in the models folder."""
    (folder / "models").mkdir()
    return (folder / "inside" / "painted0" / "models" / "strokes").rename(folder / "models" / "strokes")


@pytest.fixture(scope="module")
async def client(
    connect: Callable[..., AbstractAsyncContextManager[Client]],
    program: Callable[..., Any],
    strokes: Path,
    environment: dict[str, str],
) -> AsyncIterator[Client]:
    parameters = program()
    parameters.env = {**(parameters.env or {}), "PYTHONPATH": environment["PYTHONPATH"]}
    async with Client(parameters, mode="auto") as opened:
        yield opened


@pytest.fixture(scope="module")
async def drawn(client: Client) -> dict[str, Any]:
    return facts_of(await client.call_tool("generate_layers", HILLS))


def pixels(image: dict[str, Any]) -> np.ndarray:
    with Image.open(image["path"]) as picture:
        return np.array(picture)


async def test_a_call_draws_the_layers_that_the_model_names(drawn: dict[str, Any]):
    assert [image["role"] for image in drawn["images"]] == NAMES
    assert [image.get("box") for image in drawn["images"]] == [None, None, [0, 0, 32, 32]]
    assert [pixels(image).shape for image in drawn["images"]] == [(64, 64, 4), (64, 64, 4), (32, 32, 4)]
    assert all("alpha" in image for image in drawn["images"])


async def test_the_recipe_in_a_layer_draws_the_whole_stack_again(client: Client, drawn: dict[str, Any]):
    recipe = read_recipe(Path(drawn["images"][1]["path"]))
    assert recipe["role"] == NAMES[1]
    again = await client.call_tool("redraw_image", {"image": drawn["images"][1]["path"], "output": WAIT})
    for first, second in zip(drawn["images"], facts_of(again)["images"], strict=True):
        assert np.array_equal(pixels(first), pixels(second))


async def test_progress_rises_to_the_end(client: Client):
    heard: list[float] = []

    async def hear(progress: float, _total: float | None, _message: str | None) -> None:
        heard.append(progress)

    await client.call_tool("generate_layers", {**HILLS, "options": {**STROKES, "steps": 6}}, progress_callback=hear)
    assert len(set(heard)) > 3
    assert all(before <= after for before, after in itertools.pairwise(heard))


async def test_a_cancelled_call_stops_and_leaves_no_file(client: Client, folder: Path, drawn: dict[str, Any]):
    before = set(folder.rglob("*"))
    started = anyio.Event()

    async def hear(_progress: float, _total: float | None, message: str | None) -> None:
        if message and message.startswith("denoising"):
            started.set()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:

            async def long_call() -> None:
                large = {**HILLS, "options": {**STROKES, "steps": 150, "fit": "as_is"}, "count": 8, "size": "512x512"}
                await client.call_tool("generate_layers", large, progress_callback=hear)

            tasks.start_soon(long_call)
            await started.wait()
            tasks.cancel_scope.cancel()
    newest = facts_of(await client.call_tool("list_jobs", {"limit": 1}))["jobs"][0]
    [stopped] = facts_of(await client.call_tool("get_job", {"job_ids": [newest["job_id"]], **WAIT}))["jobs"]
    assert stopped["status"] in ("cancelling", "cancelled")
    assert set(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("sampler", "Euler", "sampler would change nothing"),
        ("layer_prompts", {"foreground": "a bird"}, "layer_prompts would change nothing"),
        ("loras", {"spice": 1}, "take no LoRAs"),
    ],
)
async def test_an_option_that_the_family_does_not_accept_is_refused(client: Client, option: str, value: Any, says: str):
    result = await client.call_tool("generate_layers", {**HILLS, "options": {**STROKES, option: value}})
    assert result.is_error
    assert says in text_of(result)


async def test_a_task_that_it_cannot_do_is_refused(client: Client):
    result = await client.call_tool("generate_transparent", {"prompt": "a bird", "options": STROKES})
    assert result.is_error
    assert "it is for generate_layers" in text_of(result)


async def test_the_models_list_shows_it_as_any_other(client: Client, strokes: Path):
    assert "strokes" in text_of(await client.call_tool("list_models", {}))


def test_noise_placing_and_cancelling_are_ours_inside_the_engine(inside: subprocess.CompletedProcess[str]):
    assert inside.returncode == 0, inside.stdout
