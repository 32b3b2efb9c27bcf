"""A picture that is not what was asked for says so, whatever its pixels: an unknown subject, another size."""

import json

import numpy as np
import pytest
from mcp import Client
from PIL import Image

from tests.results import facts_of, text_of

pytestmark = pytest.mark.anyio

OUTPUT = {"wait_seconds": 600, "save_latent": True, "preview": False}
HARP = {"prompt": "a harp", "seed": 7, "size": "256x192", "options": {"steps": 2}, "output": OUTPUT}


async def test_an_unknown_subject_at_another_size_is_drawn_fitted_and_said(client: Client):
    result = await client.call_tool("generate_transparent", HARP)
    made = facts_of(result)
    [image], [latent] = made["images"], made["latents"]
    assert any("pocket knows no subject that 'a harp' names" in warning for warning in made["warnings"])
    assert (image["verdict"], "knows no subject" in image["reason"]) == ("doubtful", True)
    assert any("256x192 has 3 times the area" in warning for warning in made["warnings"])
    assert "it was drawn as 144x112" in text_of(result)
    with Image.open(image["path"]) as picture:
        assert (picture.size, picture.mode) == ((256, 192), "RGBA")
        first, recipe = np.array(picture), json.loads(picture.info["layerdiffuse"])["request"]
    assert (recipe["width"], recipe["fit"], recipe["drawn"]) == (256, "contain", [144, 112])

    again = facts_of(await client.call_tool("redraw_image", {"image": image["path"], "output": OUTPUT}))
    with Image.open(again["images"][0]["path"]) as picture:
        assert np.abs(np.array(picture).astype(int) - first).max() <= 1

    decoded = {"latent": latent, "output": {"wait_seconds": 600}}
    drawn = facts_of(await client.call_tool("decode_transparent_latent", decoded))["images"][0]
    assert (drawn["width"], drawn["height"]) == (144, 112)


async def test_layers_of_one_result_are_fitted_alike(client: Client):
    call = {"prompt": "a red apple on a meadow", "seed": 7, "size": "256x256", "options": {"steps": 1}}
    made = facts_of(await client.call_tool("generate_layers", call | {"output": {"wait_seconds": 600}}))
    assert {(image["width"], image["height"]) for image in made["images"]} == {(256, 256)}
    assert any("fit 'cover'" in warning for warning in made["warnings"])
    assert not any("knows no subject" in warning for warning in made["warnings"])
