"""A picture by an agent's call: really transparent, the same for the same seed, stopped when nobody wants it."""

import base64
import io
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from mcp import Client
from mcp_types import BlobResourceContents, CallToolResult, ImageContent, ResourceLink
from PIL import Image

from tests.results import facts_of, text_of

pytestmark = pytest.mark.anyio

WAIT = {"output": {"wait_seconds": 600}}
QUICK = {"options": {"steps": 3}, **WAIT}
APPLE = {"prompt": "a red apple", "seed": 7, **QUICK}


async def call(client: Client, tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return facts_of(await client.call_tool(tool, dict(arguments)))


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.mode == "RGBA"
        return np.array(picture)


@pytest.fixture(scope="module")
async def apple(client: Client) -> CallToolResult:
    return await client.call_tool(
        "generate_transparent", {**APPLE, "output": {"wait_seconds": 600, "save_latent": True}}
    )


async def test_the_picture_has_clear_and_soft_alpha_and_the_facts_say_so(apple: CallToolResult):
    image = facts_of(apple)["images"][0]
    rgba = pixels(image["path"])
    assert rgba.shape == (image["height"], image["width"], 4)
    alpha = rgba[..., 3]
    assert (alpha <= 4).mean() == pytest.approx(image["alpha"]["transparent"], abs=1e-3)
    assert ((alpha > 4) & (alpha < 251)).any()
    assert image["alpha"]["has_transparency"]


async def test_the_text_stands_alone(apple: CallToolResult):
    image = facts_of(apple)["images"][0]
    text = text_of(apple)
    assert image["path"] in text
    assert "128x128" in text
    assert "seed 7" in text
    assert "% transparent" in text
    assert "preview on a checkerboard" in text
    assert "pocket" in text


async def test_the_result_has_one_small_opaque_preview_a_link_and_stays_small(apple: CallToolResult):
    previews = [block for block in apple.content if isinstance(block, ImageContent)]
    links = [block for block in apple.content if isinstance(block, ResourceLink)]
    assert (len(previews), len(links)) == (1, 1)
    data = base64.b64decode(previews[0].data)
    with Image.open(io.BytesIO(data)) as shown:
        assert "A" not in shown.getbands()
        assert max(shown.size) <= 512
    assert len(data) <= 22_000
    assert len(apple.model_dump_json()) < 40_000


async def test_the_link_leads_to_the_file(client: Client, apple: CallToolResult):
    image = facts_of(apple)["images"][0]
    read = (await client.read_resource(image["uri"])).contents[0]
    assert isinstance(read, BlobResourceContents)
    assert base64.b64decode(read.blob) == Path(image["path"]).read_bytes()


async def test_the_same_seed_draws_the_same_and_another_one_another(client: Client, apple: CallToolResult):
    first = pixels(facts_of(apple)["images"][0]["path"])
    again, other = [
        pixels((await call(client, "generate_transparent", {**APPLE, **changed}))["images"][0]["path"])
        for changed in ({}, {"seed": 8})
    ]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


async def test_with_previews_on_progress_names_a_picture_that_is_there_meanwhile(connect, folder: Path):
    seen: dict[Path, int] = {}

    async def hear(_progress: float, _total: float | None, message: str | None) -> None:
        path = Path((message or "").partition(", preview ")[2])
        if path.suffix == ".png" and path.is_file():
            seen[path] = path.stat().st_size

    async with connect(previews=True) as client:
        await client.call_tool("generate_transparent", {**APPLE, "options": {"steps": 8}}, progress_callback=hear)
    [(path, size)] = seen.items()
    assert (path.parent, size > 0, path.exists()) == (folder / "out", True, False)


async def test_a_recipe_draws_the_picture_again_or_with_named_changes(client: Client, apple: CallToolResult):
    image = facts_of(apple)["images"][0]
    again = await call(client, "redraw_image", {"image": image["path"], **WAIT})
    assert np.array_equal(pixels(again["images"][0]["path"]), pixels(image["path"]))
    identifier = image["uri"].rpartition("/")[2]
    other = await call(client, "redraw_image", {"image": identifier, "changes": {"seed": 9}, **WAIT})
    assert other["images"][0]["seed"] == 9
    assert "recipe" not in other
    told = await call(client, "get_job", {"job_ids": [other["job_id"]], "include_recipe": True})
    assert told["jobs"][0]["recipe"]["request"]["prompt"] == "a red apple"


async def test_a_second_call_finds_the_model_loaded(client: Client, apple: CallToolResult):
    again = await call(client, "generate_transparent", APPLE)
    assert again["timings"].get("load", 0) < 0.5


async def test_the_saved_latent_decodes_to_the_same_picture(client: Client, apple: CallToolResult):
    facts = facts_of(apple)
    decoded = await call(client, "decode_transparent_latent", {"latent": facts["latents"][0], **WAIT})
    assert np.array_equal(pixels(decoded["images"][0]["path"]), pixels(facts["images"][0]["path"]))


async def test_a_picture_encodes_to_a_latent_that_decodes_to_something_like_it(client: Client, apple: CallToolResult):
    path = facts_of(apple)["images"][0]["path"]
    encoded = await call(client, "encode_transparent_image", {"image": path, **WAIT})
    latent = encoded["latents"][0]
    decoded = await call(client, "decode_transparent_latent", {"latent": latent, **WAIT})
    difference = np.abs(pixels(decoded["images"][0]["path"])[..., 3].astype(float) - pixels(path)[..., 3])
    assert difference.mean() < 32


async def test_several_results_come_with_one_preview(client: Client):
    result = await client.call_tool("generate_transparent", {**APPLE, "count": 2})
    images = facts_of(result)["images"]
    assert sorted(image["seed"] for image in images) == [7, 8]
    assert sum(isinstance(block, ImageContent) for block in result.content) == 1
    assert all(image["path"] in text_of(result) for image in images)


async def test_progress_rises_strictly_with_a_message_each(client: Client):
    heard: list[tuple[float, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message))

    await client.call_tool("generate_transparent", APPLE, progress_callback=hear)
    assert all(earlier < later for (earlier, _), (later, _) in itertools.pairwise(heard))
    assert all(message for _, message in heard)
    assert any(message and message.startswith("denoising") for _, message in heard)


async def test_a_cancelled_call_stops_and_leaves_no_file(client: Client, folder: Path):
    before = set(folder.rglob("*"))
    started = anyio.Event()

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        if message and message.startswith("denoising"):
            started.set()

    async with anyio.create_task_group() as tasks:

        async def long_call() -> None:
            arguments = {**APPLE, "options": {"steps": 150}}
            await client.call_tool("generate_transparent", arguments, progress_callback=hear)

        tasks.start_soon(long_call)
        await started.wait()
        tasks.cancel_scope.cancel()
    newest = (await call(client, "list_jobs", {"limit": 1}))["jobs"][0]
    [stopped] = (await call(client, "get_job", {"job_ids": [newest["job_id"]]}))["jobs"]
    assert stopped["status"] in ("cancelling", "cancelled")
    assert set(folder.rglob("*")) == before
    assert (await call(client, "generate_transparent", APPLE))["status"] == "done"


async def test_a_wait_that_expires_gives_a_job_that_has_the_picture_later(client: Client):
    handle = await call(
        client, "generate_transparent", {**APPLE, "options": {"steps": 10}, "output": {"wait_seconds": 0}}
    )
    assert handle["status"] in ("queued", "running")
    found = await client.call_tool("get_job", {"job_ids": [handle["job_id"]], "wait_seconds": 600})
    assert Path(facts_of(found)["jobs"][0]["images"][0]["path"]).is_file()


async def test_two_calls_at_once_both_get_their_own_picture(client: Client):
    seeds: list[int] = []

    async def draw(seed: int) -> None:
        result = await call(client, "generate_transparent", {**APPLE, "seed": seed})
        seeds.append(result["images"][0]["seed"])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(draw, 21)
        tasks.start_soon(draw, 22)
    assert sorted(seeds) == [21, 22]


async def test_an_edit_keeps_what_the_mask_leaves_out(client: Client, apple: CallToolResult, folder: Path):
    path = facts_of(apple)["images"][0]["path"]
    mask = folder / "mask.png"
    Image.fromarray(np.pad(np.full((128, 64), 255, np.uint8), ((0, 0), (0, 64)))).save(mask)
    arguments = {"prompt": "a green apple", "image": path, "mask": str(mask), "seed": 3, **WAIT}
    arguments["options"] = {"steps": 3, "strength": 0.8}
    edited = await call(client, "edit_transparent", arguments)
    before, after = pixels(path).astype(float), pixels(edited["images"][0]["path"]).astype(float)
    left, right = np.abs(before - after)[:, :56].mean(), np.abs(before - after)[:, 72:].mean()
    assert left > right


async def test_a_composition_is_exact_and_a_resource_too(client: Client, apple: CallToolResult, folder: Path):
    path = facts_of(apple)["images"][0]["path"]
    composed = await call(
        client, "compose_layers", {"layers": [{"image": path}], "background": "#ffffff", "output": {"format": "png"}}
    )
    rgba = pixels(path).astype(float)
    alpha = rgba[..., 3:] / 255
    expected = np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha))
    made = pixels(composed["path"])
    assert np.abs(made[..., :3] - expected).max() <= 1
    assert (made[..., 3] == 255).all()
    listed = [str(entry.uri) for entry in (await client.list_resources()).resources]
    assert composed["uri"] in listed


async def test_a_layered_export_holds_named_layers(client: Client, apple: CallToolResult):
    import zipfile

    image = facts_of(apple)["images"][0]["uri"].rpartition("/")[2]
    layers = [{"image": image, "name": "low"}, {"image": image, "name": "high", "x": 20, "opacity": 0.5}]
    given = {"layers": layers, "output": {"format": "ora"}, "canvas": {"trim": True, "pad": 2}}
    made = await call(client, "compose_layers", given)
    with zipfile.ZipFile(made["path"]) as archive:
        stack = archive.read("stack.xml").decode()
    assert 'name="low"' in stack
    assert 'name="high"' in stack


async def test_one_layer_of_a_composition_is_changed_in_one_call(client: Client, apple: CallToolResult):
    image = facts_of(apple)["images"][0]["path"]
    layers = [{"image": image, "name": "back"}, {"image": image, "name": "front", "x": 64, "shadow": {"blur": 6}}]
    for format in ("png", "psd"):
        output = {"format": format, "preview": False}
        source = (await call(client, "compose_layers", {"layers": layers, "output": output}))["path"]
        blue = {"source": source, "replace": {"front": {"tint": "#0050ff"}}, "output": {"format": "png"}}
        before, after = pixels(image), pixels((await call(client, "compose_layers", blue))["path"])
        solid = before[..., 3] == 255
        assert np.array_equal(after[:128, :40][solid[:, :40]], before[:, :40][solid[:, :40]])
        changed = after[:128, 64:192][solid].astype(int)
        assert changed[:, 2].mean() > changed[:, 0].mean()


async def test_an_inspection_finds_alpha_and_recipe(client: Client, apple: CallToolResult):
    image = facts_of(apple)["images"][0]
    result = await client.call_tool("inspect_image", {"image": image["path"], "background": "black"})
    found = facts_of(result)
    assert found["alpha"]["bbox"] == image["alpha"]["bbox"]
    assert found["recipe"]["request"]["seed"] == 7
    assert "recipe" in text_of(result)


async def test_a_finished_job_can_be_read_as_a_resource(client: Client, apple: CallToolResult):
    job_id = facts_of(apple)["job_id"]
    read = (await client.read_resource(f"layerdiffuse://jobs/{job_id}")).contents[0]
    assert json.loads(read.text)["images"][0]["seed"] == 7  # pyright: ignore


async def test_models_can_be_dropped_and_prepared(client: Client):
    unloaded = await call(client, "unload_models", {"wait_seconds": 600})
    assert unloaded["status"] == "done"
    assert unloaded["message"] == "Unloaded: pocket."
    assert (await call(client, "server_status", {}))["engine"]["loaded"] == []
    assert (await call(client, "prepare_model", {"wait_seconds": 600}))["status"] == "done"
    assert (await call(client, "server_status", {}))["engine"]["loaded"][0]["model"] == "pocket"


async def test_a_latent_that_is_a_picture_is_refused(client: Client, apple: CallToolResult):
    path = facts_of(apple)["images"][0]["path"]
    result = await client.call_tool("decode_transparent_latent", {"latent": path, **WAIT})
    assert result.is_error
    assert "safetensors" in text_of(result)
    assert "Traceback" not in text_of(result)


async def test_a_picture_is_enlarged_by_an_agents_call_and_detail_enlarges_what_is_drawn(
    client: Client, apple: CallToolResult
):
    image = facts_of(apple)["images"][0]["path"]
    given = {"prompt": "a red apple", "image": image, "scale": 1.5, "seed": 7, **QUICK}
    larger = (await call(client, "upscale_transparent", given))["images"][0]
    assert (larger["width"], larger["height"]) == (192, 192)
    assert pixels(larger["path"]).shape == (192, 192, 4)
    drawn = {**APPLE, "size": "64x64", "options": {"steps": 2, "fit": "as_is", "detail": {"scale": 2}}}
    assert (await call(client, "generate_transparent", drawn))["images"][0]["width"] == 128
