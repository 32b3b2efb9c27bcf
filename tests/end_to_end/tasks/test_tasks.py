"""Tasks that people give to agents, done over stdio with the embedded model, in few calls and few bytes.

What is drawn is what a small network can draw, emoji-like and 128 px wide: these hold that the way to it is short and
that nothing misleading is handed on. The rest is arithmetic, and held exactly.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import BlobResourceContents, ImageContent, ResourceLink, ResourceTemplateReference
from PIL import Image
from psd_tools import PSDImage

from tests.end_to_end.tasks.conftest import WAIT, Script
from tests.results import facts_of, text_of

pytestmark = pytest.mark.anyio

KB = 1000
PATIENT = {"wait_seconds": WAIT}
BRAND = (10, 61, 98)
SKETCHED = {"steps": 3}
"""For tasks in which nobody looks at what is drawn."""


def pixels(path: str | Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(path) as picture:
        return np.array(picture)


@pytest.fixture(scope="module")
def photo(folder: Path) -> Path:
    """A photograph of 640 x 480: a sky over a meadow, with grain."""
    ramp = np.linspace(0, 1, 480)[:, None, None]
    sky, grass = np.array([150, 190, 235]), np.array([70, 120, 50])
    noise = np.random.default_rng(0).normal(0, 3, (480, 640, 3))
    colours = np.where(ramp < 0.6, sky, grass) + noise
    path = folder / "meadow.png"
    Image.fromarray(colours.clip(0, 255).astype(np.uint8)).save(path)
    return path


SUBJECTS = ["red apple", "pear", "lemon", "banana", "grapes", "strawberry", "carrot", "pineapple"]


async def test_eight_sprites_of_one_style_with_their_sheet_and_atlas_take_one_call(script: Script):
    made = await script.call(
        "generate_set",
        subjects=SUBJECTS,
        style="flat",
        seed=7,
        cell={"size": "64x64", "anchor": "bottom"},
        options=SKETCHED | {"model": "pocket"},
        output={"name": "fruit", **PATIENT},
    )
    assert script.calls == 1
    assert script.bytes < 60 * KB
    assert len([block for block in script.results[0].content if isinstance(block, ImageContent)]) == 1
    assert {image["seed"] for image in made["images"]} == {7}
    sheet, atlas = pixels(made["sheet"]["path"]), json.loads(Path(made["sheet"]["atlas"]).read_text())
    assert list(atlas["frames"]) == SUBJECTS
    for one, frame in zip(made["images"], atlas["frames"].values(), strict=True):
        sprite, box, source = pixels(one["path"]), frame["frame"], frame["spriteSourceSize"]
        assert sprite.shape == (64, 64, 4)
        assert one["alpha"]["has_transparency"]
        assert one["alpha"]["bbox"][3] >= 62  # each stands on the ground, but for what is hardly visible
        part = sheet[box["y"] : box["y"] + box["h"], box["x"] : box["x"] + box["w"]]
        own = sprite[source["y"] : source["y"] + source["h"], source["x"] : source["x"] + source["w"]]
        assert np.array_equal(part, own)


async def test_a_product_on_a_brand_colour_with_its_shadow_as_png_and_psd_in_three_calls(script: Script):
    drawn = await script.call("generate_transparent", prompt="a cup of coffee", seed=3, count=4, output=PATIENT)
    best = drawn["images"][0]
    assert best["verdict"] == "good", best
    layer = {"image": best["uri"], "name": "cup", "anchor": "center", "width": 400, "shadow": {"dy": 12, "blur": 24}}
    whole = {"layers": [layer], "background": "#0a3d62", "canvas": {"size": "1200x630"}}
    png = await script.call("compose_layers", **whole)
    psd = await script.call("compose_layers", source=png["path"], output={"format": "psd"})
    assert script.calls == 3
    assert script.bytes < 75 * KB
    flat = pixels(png["path"])
    assert flat.shape[:2] == (630, 1200)
    assert tuple(flat[0, 0, :3]) == BRAND
    assert (flat[..., :3].sum(-1) < sum(BRAND)).any()  # its shadow
    layers = [(one.name, one.bbox) for one in PSDImage.open(psd["path"])]
    assert "cup" in [name for name, _ in layers]


async def test_a_cat_is_put_into_a_photo_in_two_calls(script: Script, photo: Path):
    cat = await script.call("generate_transparent", prompt="a cat", seed=1, options=SKETCHED, output=PATIENT)
    placed = {"image": cat["images"][0]["uri"], "name": "cat", "anchor": "bottom", "width": 200}
    made = await script.call("compose_layers", layers=[placed], background=str(photo))
    assert script.calls == 2
    assert script.bytes < 50 * KB
    before, after = pixels(photo), pixels(made["path"])
    assert (made["width"], made["height"]) == (640, 480)
    changed = np.argwhere((before != after[..., :3]).any(-1))
    (top, left), (bottom, right) = changed.min(0), changed.max(0)
    x, y, width, height = (made["layers"][-1][name] for name in ("x", "y", "width", "height"))
    assert x <= left <= right < x + width
    assert y <= top <= bottom < y + height


async def test_a_flat_background_is_removed_in_one_call(script: Script, folder: Path):
    alpha = (np.hypot(*np.mgrid[-100:100, -100:100]) - 70).clip(0, 4)[..., None] / -4 + 1
    seen = alpha * np.array([220, 40, 30]) + (1 - alpha) * np.array([0, 177, 64])
    path = folder / "badge.png"
    Image.fromarray(seen.round().astype(np.uint8)).save(path)
    cut = await script.call("cut_out", image=str(path))
    assert script.calls == 1
    assert script.bytes < 40 * KB
    found = pixels(cut["path"])
    assert np.abs(found[..., 3] / 255 - alpha[..., 0]).mean() <= 4 / 255
    solid = found[found[..., 3] > 250][:, :3].astype(int)
    assert np.abs(solid - [220, 40, 30]).max() <= 6


@pytest.mark.parametrize("format", ["psd", "ora"])
async def test_a_poster_in_editable_layers_takes_two_calls(script: Script, format: str):
    drawn = await script.call("generate_layers", prompt="a cat, a meadow", seed=2, options=SKETCHED, output=PATIENT)
    roles = {image["role"]: image["uri"] for image in drawn["images"]}
    layers = [{"image": roles["background"], "name": "scene"}, {"image": roles["foreground"], "name": "subject"}]
    made = await script.call("compose_layers", layers=layers, output={"format": format, "name": "poster"})
    assert script.calls == 2
    assert script.bytes < 60 * KB
    assert Path(made["path"]).suffix == f".{format}"
    assert [layer["name"] for layer in made["layers"]] == ["scene", "subject"]


async def test_a_lamp_is_made_blue_in_one_call(script: Script, client: Client, folder: Path, photo: Path):
    lamp = Image.new("RGBA", (60, 90))
    lamp.paste((200, 60, 40, 255), (10, 10, 50, 80))
    lamp.save(folder / "lamp.png")
    layers = [{"image": str(photo)}, {"image": str(folder / "lamp.png"), "name": "lamp", "x": 300, "y": 200}]
    before = facts_of(await client.call_tool("compose_layers", {"layers": layers}))
    after = await script.call("compose_layers", source=before["path"], replace={"lamp": {"tint": "#0050ff"}})
    assert script.calls == 1
    assert script.bytes < 40 * KB
    old, new = pixels(before["path"]).astype(int), pixels(after["path"]).astype(int)
    red, green, blue = new[240, 330, :3]
    assert blue > green > red
    outside = np.ones(old.shape[:2], bool)
    outside[200:290, 300:360] = False
    assert (old[outside] == new[outside]).all()


async def test_a_drawing_is_made_again_with_one_change_in_one_call(script: Script, client: Client):
    given = {"prompt": "a red apple", "seed": 7, "options": SKETCHED, "output": PATIENT}
    first = facts_of(await client.call_tool("generate_transparent", given))["images"][0]
    again = await script.call("redraw_image", image=first["path"], changes={"prompt": "a green apple"}, output=PATIENT)
    assert script.calls == 1
    assert script.bytes < 40 * KB
    assert again["images"][0]["seed"] == 7
    assert not np.array_equal(pixels(first["path"]), pixels(again["images"][0]["path"]))


async def test_long_jobs_are_listed_awaited_and_cancelled_without_a_call_that_blocks(script: Script):
    at_once = {"wait_seconds": 0}
    one = await script.call("generate_transparent", prompt="a fish", seed=1, output=at_once)
    two = await script.call("generate_transparent", prompt="a bird", options={"steps": 150}, output=at_once)
    listed = await script.call("list_jobs")
    stopped = await script.call("cancel_job", job_id=two["job_id"])
    done = await script.call("get_job", job_ids=[one["job_id"], two["job_id"]], wait_seconds=WAIT)
    assert script.calls == 5
    assert script.bytes < 45 * KB
    lines = {line["job_id"]: line for line in listed["jobs"]}
    assert lines[one["job_id"]]["prompt"] == "a fish"
    assert lines[two["job_id"]]["size"] == "128x128"
    assert stopped["status"] in ("cancelling", "cancelled")
    assert done["jobs"][0]["status"] == "done"
    assert done["jobs"][1]["status"] in ("cancelling", "cancelled")


MEADOW = "the photograph"
WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "a family that is not here": ("generate_transparent", {"prompt": "x", "options": {"model": "sdxl"}}, "prepare"),
    "a model of another kind": ("generate_transparent", {"prompt": "x", "options": {"model": "sd3"}}, "Larger"),
    "an address": ("cut_out", {"image": "https://example.org/cat.png"}, "addresses are not fetched"),
    "a colour without its sign": ("inspect_image", {"image": MEADOW, "background": "0a3d62"}, "#0a3d62"),
    "no prompt": ("generate_transparent", {"seed": 3}, "generate_transparent needs prompt"),
    "the old place of an option": ("generate_transparent", {"prompt": "x", "steps": 3}, "now `options.steps`"),
    "a sampler with a slip": ("generate_transparent", {"prompt": "x", "options": {"sampler": "Eular"}}, "Euler"),
    "a file that is not there": ("inspect_image", {"image": "nowhere.png"}, "There is no file"),
    "an opaque picture to edit": ("edit_transparent", {"prompt": "a meadow", "image": MEADOW}, "Call cut_out on it"),
    "a size below all": ("generate_transparent", {"prompt": "x", "size": "8x8"}, "from 16 to 2048"),
    "a tool with a slip": ("generate_transparant", {"prompt": "x"}, "generate_transparent"),
}


async def test_wrong_input_is_answered_with_what_to_do_instead(script: Script, photo: Path):
    for case, (tool, arguments, words) in WRONG.items():
        given = {name: str(photo) if value == MEADOW else value for name, value in arguments.items()}
        refused = await script.result(tool, **given)
        assert refused.is_error, case
        assert words in text_of(refused), (case, text_of(refused))
        assert "pydantic" not in text_of(refused)
    assert script.bytes < len(WRONG) * 2 * KB
    with pytest.raises(MCPError, match="needs subjects"):
        await script.client.get_prompt("game_sprites", {})


async def test_what_was_made_is_found_again_among_the_resources(script: Script):
    result = await script.result("generate_transparent", prompt="a star", seed=4, options=SKETCHED, output=PATIENT)
    [link] = [block for block in result.content if isinstance(block, ResourceLink)]
    listed = (await script.client.list_resources()).resources
    assert link.uri in [entry.uri for entry in listed]
    [content] = (await script.client.read_resource(link.uri)).contents
    assert isinstance(content, BlobResourceContents)
    assert (content.mime_type, link.mime_type) == ("image/png", "image/png")
    template = ResourceTemplateReference(type="ref/resource", uri="layerdiffuse://images/{id}")
    found = await script.client.complete(template, {"name": "id", "value": "job-"})
    assert link.uri.rpartition("/")[2] in found.completion.values
    assert script.bytes < 40 * KB
