"""Sets and a person's own background with the embedded model, over stdio: what an agent gets in one call."""

from pathlib import Path

import numpy as np
import pytest
from mcp import Client
from PIL import Image

from tests.results import facts_of, text_of

pytestmark = pytest.mark.anyio


def pixels_of(path: str) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


async def test_a_picture_of_a_set_is_the_one_that_its_seed_draws_alone(client: Client):
    options = {"steps": 4, "model": "pocket"}
    given = {"subjects": ["red apple", "pear"], "seed": 7, "options": options, "cell": {"trim": False}}
    made = facts_of(await client.call_tool("generate_set", given))["images"]
    again = facts_of(await client.call_tool("redraw_image", {"image": made[1]["uri"]}))["images"][0]
    alone = await client.call_tool("generate_transparent", {"prompt": "pear", "seed": 7, "options": options})
    for other in (again, facts_of(alone)["images"][0]):
        apart = pixels_of(made[1]["path"]).astype(int) - pixels_of(other["path"])
        assert np.abs(apart).max() <= 1  # those of a set are drawn as one batch


async def test_a_subject_comes_onto_a_persons_photograph_in_one_call(client: Client, folder: Path):
    rows, columns = np.mgrid[0:420, 0:560]
    meadow = np.stack([columns // 4, 100 + rows // 4, 255 - rows // 2], axis=-1).astype(np.uint8)
    Image.fromarray(meadow).save(folder / "meadow.png")
    given = {
        "prompt": "cat",
        "background": str(folder / "meadow.png"),
        "seed": 3,
        "options": {"steps": 8, "model": "pocket"},
    }
    result = await client.call_tool("generate_foreground_from_background", given)
    pictures = {one["role"]: one for one in facts_of(result)["images"]}
    assert set(pictures) == {"foreground", "composed", "blended"}
    composed, place = pixels_of(pictures["composed"]["path"]), pictures["composed"]["placement"]
    assert composed.shape[:2] == (420, 560)
    left, top, right, bottom = place["crop"]
    outside = np.ones((420, 560), np.bool_)
    outside[top:bottom, left:right] = False
    assert np.array_equal(composed[outside][:, :3], meadow[outside])
    assert place["width"] / pictures["foreground"]["width"] == pytest.approx(place["scale"], abs=1e-3)
    assert "sketch" in text_of(result)
    assert (composed[~outside][:, :3] != meadow[~outside]).any()
