"""Whole runs equal the reference's: the words of a call in, the bytes of its pictures out.

The calls of `cases.json` go through the real client to the real server, which finds narrow bases and layer files in its
models folder; nothing between an agent's words and the files on disk is left out. As many threads compute as do for a
user: what they share by mistake shows only so.
"""

import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mcp import Client, StdioServerParameters
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.results import facts_of

from .conftest import GoldenSet
from .narrow_files import write_models

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("two_threads")]

PASSED = ("OMP_NUM_THREADS", "PATH", "NVIDIA_TF32_OVERRIDE", "LD_LIBRARY_PATH")  # to the server
MOST_LEVELS = {"cpu": 1, "cuda": 3}  # of 255, by which a value may differ
NATIVE_SIZE = 128  # of the narrow bases
MOST_SHARE = {"cpu": 0.005, "cuda": 0.05}  # of a picture's values, that may differ


@pytest.fixture(scope="module")
def folder(golden: GoldenSet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project folder with `models/` and every given picture and latent as a file; gone when the module is done."""
    folder = tmp_path_factory.mktemp("whole-runs")
    (folder / "models").mkdir()
    write_models(folder / "models", golden)
    for key, tensor in golden.file("pictures").items():
        if key.startswith("picture."):
            Image.fromarray(tensor.numpy()).save(folder / f"{key}.png")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
async def client(folder: Path, golden: GoldenSet) -> AsyncIterator[Client]:
    """A client on a server of its own for all cases."""
    settings = {"OUTPUT_DIR": folder / "out", "READ_DIRS": folder, "MODELS_DIR": folder / "models"}
    settings |= {"SHARE_WORKERS": "off", "DEVICE": golden.device, "DTYPE": "float32"}
    environment = {f"LAYERDIFFUSE_{name}": str(value) for name, value in settings.items()}
    environment |= {name: os.environ[name] for name in PASSED if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    server = StdioServerParameters(command=sys.executable, args=["-m", "layerdiffuse_mcp"], env=environment)
    async with Client(server) as opened:
        yield opened


@pytest.fixture(scope="module")
async def savers(client: Client) -> set[str]:
    """The tools that can save a picture's latent too."""
    tools = (await client.list_tools()).tools
    outputs = {tool.name: tool.input_schema["properties"].get("output", {}).get("properties", {}) for tool in tools}
    return {name for name, output in outputs.items() if "save_latent" in output}


async def test_a_whole_run_equals_the_reference(
    case: dict[str, Any], golden: GoldenSet, folder: Path, client: Client, savers: set[str]
) -> None:
    tool, arguments = call_of(case, golden, folder)
    if tool in savers:
        arguments["output"]["save_latent"] = True
    facts = facts_of(await client.call_tool(tool, arguments))
    images = [image for image in facts.get("images", ()) if image["role"] != "composed"]  # no network makes it
    in_turn = sorted(images, key=lambda image: image["seed"])  # the best come first
    latents = sorted(facts.get("latents", ()), key=seed_of)
    check_latents(golden, case, [load_file(path) for path in latents])
    drawn = check_pictures(golden, case, in_turn)
    if case.get("repeat", 1) > 1:  # decoding is where threads share
        await check_decoded_again(client, latents[0], case, drawn[0])


async def check_decoded_again(client: Client, latent: str, case: dict[str, Any], drawn: np.ndarray) -> None:
    """A saved latent gives every value of its picture again."""
    decoded = {"latent": latent, "model": case["arguments"]["model"], "output": {"wait_seconds": 600}}
    [image] = facts_of(await client.call_tool("decode_transparent_latent", decoded))["images"]
    with Image.open(image["path"]) as picture:
        assert np.array_equal(np.asarray(picture), drawn)


BESIDE = ("prompt", "seed", "count", "image", "foreground", "background", "blended", "latent")
"""What stands beside `options` in a call; of an extraction `count` does not."""


def call_of(case: dict[str, Any], golden: GoldenSet, folder: Path) -> tuple[str, dict[str, Any]]:
    """A case, whose arguments are flat, as a call of a tool: with files where the case names keys."""
    tool, flat = case["tool"], dict(case["arguments"])
    for name, value in flat.items():
        if name == "latent":
            path = folder / f"{case['name']}.safetensors"
            save_file({"latent": golden.file("pictures")[value]}, path)
            flat[name] = str(path)
        elif isinstance(value, str) and value.startswith("picture."):
            flat[name] = str(folder / f"{value}.png")
    call: dict[str, Any] = {"output": {"wait_seconds": 600}}
    if "width" in flat:
        width, height = flat.pop("width"), flat.pop("height")
        call["size"] = f"{width}x{height}"
        if width * height > 1.5 * NATIVE_SIZE**2:  # else it would be drawn smaller, and fitted
            flat["fit"] = "as_is"
    beside = [name for name in BESIDE if (tool, name) != ("extract_layer", "count")]
    if tool in ("decode_transparent_latent", "encode_transparent_image"):
        return tool, call | flat
    if tool == "generate_blended":
        call["want"] = ["blended"]
        tool = f"generate_{'background' if 'foreground' in flat else 'foreground'}_from_"
        tool += "foreground" if "foreground" in flat else "background"
    call |= {name: flat.pop(name) for name in beside if name in flat}
    layers = {name.removesuffix("_prompt"): flat.pop(name) for name in [*flat] if name in OWN_PROMPTS}
    return tool, call | {"options": flat | ({"layer_prompts": layers} if layers else {})}


OWN_PROMPTS = ("foreground_prompt", "background_prompt", "blended_prompt")


def seed_of(latent: str) -> int:
    """The seed in a saved latent's name, `...-<seed>-<role>.safetensors`, or `...-<role>-2` of one name's second.

    That of a given picture was drawn by none.
    """
    named = re.search(r"-(\d+)-[a-z]+(-\d+)?$", Path(latent).stem)
    return int(named[1]) if named else 0


def check_latents(golden: GoldenSet, case: dict[str, Any], saved: list[dict[str, torch.Tensor]]) -> None:
    """Those that the call saved, in order, where the set knows them."""
    known = golden.file("pictures")
    keys = [key if key.endswith("/latent") else f"{key}/latent" for key in case["expect"]]
    for key, file in zip(keys, saved, strict=bool(saved)):
        [latent] = file.values()
        if key in known:
            golden.check("pictures", key, latent)


def check_pictures(golden: GoldenSet, case: dict[str, Any], images: list[dict[str, Any]]) -> list[np.ndarray]:
    """Every picture that the case expects, and no other; returns them."""
    keys = [key for key in case["expect"] if not key.endswith("/latent")]
    assert [key.rpartition("/")[2] for key in keys] == [image["role"] for image in images]
    drawn: list[np.ndarray] = []
    for key, image in zip(keys, images, strict=True):
        with Image.open(image["path"]) as picture:
            drawn.append(np.asarray(picture))
        gold = golden.file("pictures")[key].numpy()
        every = case.get("every", 1)
        ours = drawn[-1][::every, ::every]
        assert ours.shape == gold.shape
        apart = np.abs(ours.astype(int) - gold.astype(int))
        share = float((apart > 0).mean())
        golden.record("pictures: share that differs", key, share)
        assert apart.max() <= MOST_LEVELS[golden.device], (
            f"{key}: up to {apart.max()} levels apart, {share:.2%} of all values differ"
        )
        assert share <= MOST_SHARE[golden.device], f"{key}: {share:.2%} of all values differ"
    return drawn
