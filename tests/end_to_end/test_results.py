"""What a result costs and says: small, the best first, true to its file; and pictures that are drawn again."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcp import Client
from mcp_types import CallToolResult, ImageContent, ResourceLink
from PIL import Image

from layerdiffuse_mcp.api.outcome import VERDICTS
from layerdiffuse_mcp.images.png import ID_KEY, read_recipe
from layerdiffuse_mcp.server.services import IMAGES
from tests.results import facts_of, text_of

pytestmark = pytest.mark.anyio

WAIT = {"wait_seconds": 600}
QUICK: dict[str, Any] = {"options": {"steps": 3}, "output": WAIT}
TEXT = """a red apple
Negative prompt: blurry
Steps: 3, Sampler: DPM++ 2M Karras, CFG scale: 4, Seed: 5, Size: 128x128, Model hash: 0123456789, Model: pocket, \
Denoising strength: 0.75, Hires upscale: 2, layerdiffusion_enabled: True, \
layerdiffusion_method: (SD1.5) Only Generate Transparent Image (Attention Injection), layerdiffusion_weight: 1, \
layerdiffusion_ending_step: 1, Version: v1.9.0"""


def size_of(result: CallToolResult) -> int:
    """Bytes on the wire."""
    return len(result.model_dump_json(by_alias=True, exclude_none=True).encode())


def empty(value: Any) -> bool:
    """Whether there is an empty list or object anywhere in it."""
    match value:
        case {**items}:
            return not items or any(map(empty, items.values()))
        case [*items]:
            return not items or any(map(empty, items))
        case _:
            return False


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as picture:
        return np.array(picture)


@pytest.fixture(scope="module")
async def apple(client: Client) -> CallToolResult:
    return await client.call_tool("generate_transparent", {"prompt": "a red apple", "seed": 7, **QUICK})


@pytest.fixture(scope="module")
async def eight(client: Client) -> CallToolResult:
    return await client.call_tool("generate_transparent", {"prompt": "a red apple", "seed": 7, "count": 8, **QUICK})


async def test_one_picture_takes_less_than_40_kb_and_eight_less_than_60(apple: CallToolResult, eight: CallToolResult):
    assert size_of(apple) < 40_000
    assert size_of(eight) < 60_000
    for result in (apple, eight):
        [shown] = [block for block in result.content if isinstance(block, ImageContent)]
        assert len(base64.b64decode(shown.data)) <= 22_000
        assert not empty(result.structured_content)
        assert "recipe" not in facts_of(result)
        for image in facts_of(result)["images"]:
            rest = json.dumps([block.model_dump(mode="json") for block in result.content[1:]])
            assert (text_of(result).count(image["path"]), rest.count(image["path"])) == (1, 0)


async def test_the_best_results_come_first_and_bear_the_numbers_of_their_ids(client: Client, eight: CallToolResult):
    images = facts_of(eight)["images"]
    order = [VERDICTS.index(image["verdict"]) for image in images]
    assert order == sorted(order)
    assert [image["number"] for image in images] == list(range(1, 9))
    for image in images:
        assert image["uri"].endswith(f"-{image['number']}")
        id = image["uri"].removeprefix(IMAGES)
        assert f"{image['number']}. {id}: {image['path']}" in text_of(eight)
        assert ("reason" in image) == (image["verdict"] != "good")
        found = facts_of(await client.call_tool("inspect_image", {"image": image["uri"], "preview": False}))
        assert found["recipe"]["request"]["seed"] == image["seed"]


async def test_a_webp_holds_the_same_pixels_and_the_recipe_and_is_drawn_again_from_itself(
    client: Client, apple: CallToolResult
):
    output = {**WAIT, "format": "webp", "name": "My Apple"}
    made = await client.call_tool(
        "generate_transparent", {"prompt": "a red apple", "seed": 7, "options": {"steps": 3}, "output": output}
    )
    [image], [png] = facts_of(made)["images"], facts_of(apple)["images"]
    assert Path(image["path"]).name.endswith("-my-apple-7-foreground.webp")
    assert np.array_equal(pixels(image["path"]), pixels(png["path"]))
    [link] = [block for block in made.content if isinstance(block, ResourceLink)]
    read = (await client.read_resource(image["uri"])).contents[0]
    assert (link.mime_type, read.mime_type) == ("image/webp", "image/webp")
    again = facts_of(await client.call_tool("redraw_image", {"image": image["path"], "output": WAIT}))
    assert np.array_equal(pixels(again["images"][0]["path"]), pixels(png["path"]))
    assert not [warning for warning in again.get("warnings", ()) if "not checked" in warning or "another" in warning]


async def test_without_metadata_a_file_says_nothing_of_itself(client: Client):
    given = {"prompt": "a red apple", "options": {"steps": 1}, "output": {**WAIT, "metadata": "none"}}
    [image] = facts_of(await client.call_tool("generate_transparent", given))["images"]
    with Image.open(image["path"]) as picture:
        assert picture.info.keys() <= {ID_KEY}
    refused = await client.call_tool("redraw_image", {"image": image["path"]})
    assert "holds no recipe. It was drawn here without metadata" in text_of(refused)


async def test_a_changed_prompt_drops_the_layers_own_prompts_and_that_is_said(client: Client):
    options = {"steps": 2, "layer_prompts": {"background": "a meadow"}}
    given = {"prompt": "an apple", "seed": 3, "options": options, "output": WAIT}
    image = facts_of(await client.call_tool("generate_layers", given))["images"][0]
    changed = {"image": image["path"], "changes": {"prompt": "a pear", "options": {"steps": 1}}, "output": WAIT}
    again = await client.call_tool("redraw_image", changed)
    assert "own prompts for background were dropped" in text_of(again)
    told = facts_of(await client.call_tool("get_job", {"job_ids": [facts_of(again)["job_id"]], "include_recipe": True}))
    request = told["jobs"][0]["recipe"]["request"]
    assert (request["prompt"], request["layer_prompts"], request["seed"]) == ("a pear", {}, 3)
    assert request["stages"][0]["steps"] == 1


async def test_a_text_as_people_paste_it_is_drawn_with_a_word_for_all_that_has_no_counterpart(client: Client):
    drawn = await client.call_tool("redraw_image", {"parameters": TEXT, "output": WAIT})
    [image] = facts_of(drawn)["images"]
    assert (image["seed"], image["width"]) == (5, 128)
    for said in (
        "Hires upscale: 2 has no counterpart",
        "Denoising strength acts on a given picture",
        "is another file",
    ):
        assert said in text_of(drawn), said
    job_id = facts_of(drawn)["job_id"]
    told = facts_of(await client.call_tool("get_job", {"job_ids": [job_id], "include_recipe": True}))["jobs"][0]
    [stage] = told["recipe"]["request"]["stages"]
    assert (stage["sampler"], stage["schedule"], stage["guidance_scale"]) == ("DPM++ 2M", "Karras", 4)
    changes = {"seed": 6, "options": {"steps": 1}}
    other = facts_of(await client.call_tool("redraw_image", {"parameters": TEXT, "changes": changes, "output": WAIT}))
    assert other["images"][0]["seed"] == 6


async def test_only_the_layers_that_are_wanted_are_kept(client: Client, apple: CallToolResult):
    given = {"prompt": "an apple on a table", "foreground": facts_of(apple)["images"][0]["path"], **QUICK}
    for want in (["blended"], ["background"], ["background", "blended"]):
        drawn = await client.call_tool("generate_background_from_foreground", {**given, "want": want})
        assert [image["role"] for image in facts_of(drawn)["images"]] == want


async def test_licences_stand_in_the_result_in_the_picture_and_in_the_list(client: Client, apple: CallToolResult):
    facts = facts_of(apple)
    assert facts["licences"]["model"] == "Apache-2.0"
    assert set(facts["licences"]) == {
        "model",
        "layer_sd15_transparent_attn.safetensors",
        "layer_sd15_vae_transparent_decoder.safetensors",
    }
    assert "Licences: base, layer files Apache-2.0." in text_of(apple)
    assert re.search(r"Drawn by \w+, 3 steps, guidance 4\.\n", text_of(apple))
    assert read_recipe(Path(facts["images"][0]["path"]))["licences"] == facts["licences"]
    listed = await client.call_tool("list_models", {})
    assert "licence creativeml-openrail-m" in text_of(listed)
    assert "of its layer files creativeml-openrail-m" in text_of(listed)
    models = {model["name"]: model for model in facts_of(listed)["models"]}
    assert models["pocket"]["layer_licences"] == ["Apache-2.0"]
    assert models["juggernaut-xl-v6"]["layer_licences"] == ["creativeml-openrail-m"]
