"""The viewer in a real browser, under the strictest policy: what lies on the canvas, what its controls do."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp_types import CallToolResult
from PIL import Image
from playwright.async_api import Browser, expect

from tests.end_to_end.browser.conftest import Host, plain
from tests.results import facts_of

pytestmark = [pytest.mark.anyio, pytest.mark.extras]

Open = Callable[..., Awaitable[Host]]
APPLE: dict[str, Any] = {"prompt": "a red apple", "seed": 1, "output": {"preview": False, "wait_seconds": 600}}
PATIENCE = 120_000
"""Milliseconds."""
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
async def apple(server: Client) -> CallToolResult:
    """One transparent picture."""
    return await server.call_tool("generate_transparent", APPLE)


@pytest.fixture(scope="module")
async def layers(server: Client) -> CallToolResult:
    """Foreground, background and blended."""
    return await server.call_tool("generate_layers", APPLE)


@pytest.fixture
async def look(browser: Browser, server: Client) -> AsyncIterator[Open]:
    """Opens the page on a result; in the end nothing may have gone wrong there."""
    hosts: list[Host] = []

    async def opened(arguments: dict[str, Any], result: CallToolResult, theme: str = "light") -> Host:
        page = await browser.new_page(viewport={"width": 1000, "height": 1300})
        page.set_default_timeout(PATIENCE)
        hosts.append(Host(page, server, theme))
        await hosts[-1].open(arguments, plain(result))
        return hosts[-1]

    yield opened
    for host in hosts:
        await host.page.close()
        assert host.errors == []


def picture(result: CallToolResult, role: str = "foreground") -> Image.Image:
    """A picture that a call has made."""
    [path] = [image["path"] for image in facts_of(result)["images"] if image["role"] == role]
    return Image.open(path).convert("RGBA")


def near(got: list[int], wanted: Any) -> bool:
    return all(abs(one - other) <= 2 for one, other in zip(got, wanted, strict=True))


def inside(shown: Image.Image) -> tuple[int, int]:
    """A point of the picture that nothing shines through."""
    solid = shown.getchannel("A").point(lambda alpha: 255 * (alpha == 255))
    left, top, right, bottom = solid.getbbox() or (0, 0, 0, 0)
    return (left + right) // 2, (top + bottom) // 2


async def test_a_transparent_corner_shows_what_lies_behind(look: Open, apple: CallToolResult, tmp_path: Path):
    host = await look(APPLE, apple)
    await expect(host.view.locator("h1")).to_have_text("a red apple")
    shown = picture(apple)
    middle = inside(shown)
    solid = shown.getpixel(middle)
    for name, colour in {"Black": (0, 0, 0, 255), "White": (255, 255, 255, 255), "Green": (0, 177, 64, 255)}.items():
        await host.view.get_by_role("radio", name=name).check()
        assert await host.pixel(0, 0) == list(colour)
        assert near(await host.pixel(*middle), solid)
    await host.view.get_by_label("Choose the colour").fill("#123456")
    assert await host.pixel(0, 0) == [0x12, 0x34, 0x56, 255]
    Image.new("RGB", (30, 10), (200, 100, 50)).save(tmp_path / "scene.png")
    await host.view.get_by_label("Picture to lie behind").set_input_files(tmp_path / "scene.png")
    await expect(host.view.get_by_role("radio", name="Picture")).to_be_checked()
    assert near(await host.pixel(0, 0), (200, 100, 50, 255))
    await host.view.get_by_role("radio", name="Checkerboard").check()
    first = await host.pixel(0, 0)
    step = 8 / (await host.place())[2]
    assert await host.pixel(int(step + 0.5), 0) != first
    await host.view.get_by_role("button", name="Alpha").click()
    assert await host.pixel(0, 0) == [0, 0, 0, 255]
    assert await host.pixel(*middle) == [255, 255, 255, 255]


async def test_the_picture_is_described_by_its_prompt_and_its_alpha(look: Open, apple: CallToolResult, server: Client):
    alpha = facts_of(apple)["images"][0]["alpha"]
    wanted = re.compile(
        rf"^a red apple: {alpha['transparent']:.0%} transparent, {alpha['partial']:.0%} partial; visible"
    )
    again = await server.call_tool("get_job", {"job_ids": [facts_of(apple)["job_id"]], "preview": False})
    for arguments, result in ((APPLE, apple), ({"job_ids": ["x"]}, again)):
        host = await look(arguments, result)
        await expect(host.view.get_by_role("img", name="a red apple")).to_be_visible()
        assert wanted.match(await host.view.locator("#canvas").get_attribute("aria-label") or "")


async def test_zoom_and_grid_by_keys_and_buttons(look: Open, apple: CallToolResult):
    host = await look(APPLE, apple)
    stage, zoom = host.view.locator("#stage"), host.view.locator("#zoom")
    await expect(zoom).to_have_text("300%")
    await stage.press("1")
    await expect(zoom).to_have_text("100%")
    await stage.press("+")
    await host.view.get_by_role("button", name="Zoom in").click()
    await expect(zoom).to_have_text("156%")
    await stage.press("-")
    await expect(zoom).to_have_text("125%")
    for _ in range(8):
        await stage.press("+")
    await host.view.get_by_role("radio", name="Black").check()
    before = await host.page.screenshot()
    await host.view.get_by_role("button", name="Grid").click()
    assert await host.page.screenshot() != before
    await stage.press("0")
    await expect(zoom).to_have_text("300%")


async def test_layers_are_hidden_and_shown(look: Open, layers: CallToolResult):
    host = await look(APPLE, layers)
    middle = inside(picture(layers))
    await expect(host.view.get_by_role("checkbox", name="foreground")).to_be_checked()
    await expect(host.view.get_by_role("checkbox", name="blended")).not_to_be_checked()
    seen = {True: picture(layers), False: picture(layers, "background")}
    for shown in (True, False, True):
        await host.view.get_by_role("checkbox", name="foreground").set_checked(shown)
        assert near(await host.pixel(*middle), seen[shown].getpixel(middle))
    await host.view.get_by_role("checkbox", name="blended").check()
    assert near(await host.pixel(*middle), picture(layers, "blended").getpixel(middle))


async def drag(host: Host, start: tuple[int, int], right: int, down: int) -> None:
    """Drag what lies at a pixel of the picture by pixels of the picture."""
    box = await host.view.locator("#stage").bounding_box()
    assert box is not None
    left, top, scale = await host.place()
    x, y = box["x"] + left + (start[0] + 0.5) * scale, box["y"] + top + (start[1] + 0.5) * scale
    await host.page.mouse.move(x, y)
    await host.page.mouse.down()
    await host.page.mouse.move(x + right * scale, y + down * scale, steps=4)
    await host.page.mouse.up()


async def test_layers_that_were_dragged_are_composed_and_moved_again(look: Open, layers: CallToolResult):
    host = await look(APPLE, layers)
    await expect(host.view.get_by_role("checkbox", name="foreground")).to_be_checked()
    start = inside(picture(layers))
    await expect(host.view.get_by_role("button", name="Save composition")).to_be_hidden()
    await drag(host, start, 12, -5)
    await host.view.get_by_role("button", name="Save composition").click()
    await expect(host.view.locator("#status")).to_contain_text("Saved: ")
    by_role = {image["role"]: image["uri"] for image in facts_of(layers)["images"]}
    name, asked = host.calls[-1]
    assert name == "compose_layers"
    assert asked["layers"] == [
        {"image": by_role["background"], "name": "background", "x": 0, "y": 0},
        {"image": by_role["foreground"], "name": "foreground", "x": 12, "y": -5},
    ]
    solid = picture(layers).getpixel(start)
    assert near(await host.pixel(start[0] + 12, start[1] - 5), solid)
    await drag(host, (start[0] + 12, start[1] - 5), -20, 0)  # what is seen now is the file, and then its layers
    assert near(await host.pixel(start[0] - 8, start[1] - 5), solid)
    await host.view.get_by_role("button", name="Save composition").click()
    await expect(host.view.locator("#status")).to_contain_text("Saved: ")
    await expect(host.view.get_by_role("button", name="Save composition")).to_be_hidden()
    name, asked = host.calls[-1]
    assert (name, asked["replace"]) == ("compose_layers", {"foreground": {"x": -8, "y": -5}})
    saved = Image.open((await host.view.locator("#status").inner_text()).removeprefix("Saved: "))
    assert near(list(saved.convert("RGBA").getpixel((start[0] - 8, start[1] - 5))), solid)  # pyright: ignore
    assert len([text for text in host.context if text.startswith("Made in the viewer: Composed 2 layers")]) == 2


async def test_a_layer_is_placed_by_keys_alone(look: Open, layers: CallToolResult):
    host = await look(APPLE, layers)
    move = host.view.get_by_role("button", name="Move foreground")
    await move.focus()
    await move.press("Enter")
    await host.view.locator("#stage").press("Shift+ArrowRight")
    await host.view.locator("#stage").press("ArrowUp")
    await expect(host.view.get_by_label("x", exact=True)).to_have_value("10")
    await expect(host.view.get_by_label("y", exact=True)).to_have_value("-1")
    await host.view.get_by_label("y", exact=True).fill("7")
    await host.view.get_by_label("y", exact=True).press("Enter")
    await host.view.get_by_role("button", name="Save composition").click()
    await expect(host.view.locator("#status")).to_contain_text("Saved: ")
    assert [(layer["x"], layer["y"]) for layer in host.calls[-1][1]["layers"]] == [(0, 0), (10, 7)]


async def test_a_composition_that_an_agent_made_is_taken_apart(
    look: Open, layers: CallToolResult, apple: CallToolResult, server: Client
):
    scene = next(image["path"] for image in facts_of(layers)["images"] if image["role"] == "background")
    lamp = {"image": facts_of(apple)["images"][0]["path"], "name": "lamp", "x": 30, "width": 64}
    asked = {"layers": [{"image": scene}, lamp], "output": {"preview": False}}
    host = await look(asked, await server.call_tool("compose_layers", asked))
    await expect(host.view.get_by_role("checkbox", name="lamp")).to_be_checked()
    middle = (62, 32)
    assert near(await host.pixel(*middle), Image.open(host.first[1]["structuredContent"]["path"]).getpixel(middle))
    await host.view.get_by_role("checkbox", name="lamp").uncheck()
    assert near(await host.pixel(*middle), picture(layers, "background").getpixel(middle))
    await host.view.get_by_role("button", name="Save composition").click()
    await expect(host.view.locator("#status")).to_contain_text("Saved: ")
    assert host.calls[-1][1]["replace"] == {"lamp": {"visible": False}}


async def test_another_seed_and_a_larger_one_are_drawn_and_compared(look: Open, apple: CallToolResult):
    host = await look(APPLE, apple)
    facts = host.view.locator("#facts")
    await expect(facts).to_contain_text("seed 1 ·")
    await expect(host.view.get_by_role("button", name="Before")).to_be_hidden()
    await host.view.get_by_role("button", name="Another seed").click()
    await expect(facts).not_to_contain_text("seed 1 ·")
    asked = next(asked for name, asked in host.calls if name == "redraw_image")
    assert asked["image"] == facts_of(apple)["images"][0]["uri"]
    await expect(facts).to_contain_text(f"seed {asked['changes']['seed']} ·")
    await host.view.get_by_role("button", name="Alpha").click()
    await host.view.get_by_role("button", name="Before").click()
    await host.view.get_by_label("How much is shown").fill("100")
    await host.view.get_by_role("button", name="Alpha").click()
    middle = inside(picture(apple))
    assert near(await host.pixel(*middle), picture(apple).getpixel(middle))
    await host.view.get_by_role("button", name="Larger").click()
    await expect(facts).to_contain_text("256 × 256")
    await expect(host.view.locator("#status")).to_contain_text("adds no detail")


async def test_the_gallery_finds_pictures_by_their_prompt(look: Open, layers: CallToolResult, server: Client):
    listed = await server.call_tool("find_images", {})
    host = await look({}, listed)
    await expect(host.view.locator("h1")).to_have_text("Pictures made before")
    await expect(host.view.locator("#page")).to_contain_text("Page 1 of")
    words = host.view.get_by_label("Words of the prompt")
    await words.fill("apple red")
    await words.press("Enter")
    first = host.view.get_by_role("button", name="Open a red apple").first
    await expect(first).to_be_visible()
    assert host.calls[-1] == ("find_images", {"words": "apple red", "page": 1})
    await expect(first.locator("canvas[width='264']")).to_be_visible()
    await first.click()
    await expect(host.view.locator("h1")).to_have_text("a red apple")
    await words.fill("zebra")
    await host.view.get_by_role("button", name="Search").click()
    await expect(host.view.locator("#page")).to_have_text("No pictures")


async def test_an_error_of_a_call_is_said(look: Open, apple: CallToolResult):
    host = await look(APPLE, apple)
    await expect(host.view.locator("h1")).to_have_text("a red apple")
    Path(facts_of(apple)["images"][0]["path"]).rename(moved := Path(facts_of(apple)["images"][0]["path"] + ".moved"))
    try:
        await host.view.get_by_role("button", name="Another seed").click()
        await expect(host.view.locator("#status.wrong")).to_contain_text("was deleted or moved")
        await expect(host.view.get_by_role("button", name="Another seed")).to_be_enabled()
    finally:
        moved.rename(facts_of(apple)["images"][0]["path"])


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What looks for barriers."""
    work = tmp_path_factory.mktemp("axe")
    shutil.copy(Path(__file__).parent / "package.json", work)
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=work, check=True)
    return (work / "node_modules/axe-core/axe.min.js").read_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_axe_finds_no_barrier(
    look: Open, layers: CallToolResult, axe: str, theme: str, tmp_path_factory: pytest.TempPathFactory
):
    """The screenshots stay in pytest's folder, to be looked at."""
    host = await look(APPLE, layers, theme)
    await host.view.get_by_role("button", name="Move foreground").click()
    await host.view.locator("#stage").press("ArrowRight")
    await host.view.get_by_role("button", name="Gallery").click()
    await expect(host.view.locator("#found canvas[width='264']").first).to_be_visible()
    await expect(host.view.locator("#found canvas:not([width='264'])")).to_have_count(0)
    await host.page.screenshot(path=tmp_path_factory.getbasetemp() / f"viewer-{theme}.png", full_page=True)
    await host.frame.evaluate(f"() => {{ {axe} }}")
    found = await host.frame.evaluate("axe.run().then(({ violations }) => JSON.stringify(violations))")
    assert [(one["id"], one["nodes"][0]["html"]) for one in json.loads(found)] == []


async def test_the_program_shows_files_in_a_browser(browser: Browser, apple: CallToolResult, server: Client):
    path = facts_of(apple)["images"][0]["path"]
    command = [sys.executable, "-m", "layerdiffuse_mcp", "view", path, "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        address = program.stdout.readline().removeprefix("address: ").strip()
        page = await browser.new_page()
        host = Host(page, server, "light")
        await page.goto(address)
        await expect(host.view.locator("h1")).to_have_text("a red apple")
        assert "#" not in page.url
        await host.view.get_by_role("radio", name="Green").check()
        assert await host.pixel(0, 0) == [0, 177, 64, 255]
        for name in ("Another seed", "Larger", "Gallery", "Save composition"):
            await expect(host.view.get_by_role("button", name=name)).to_have_count(0)
        await page.reload()
        await expect(host.view.locator("h1")).to_have_text("a red apple")
        other = await (await browser.new_context()).new_page()
        await other.goto(address)
        await expect(other.get_by_role("status")).to_contain_text("opened already")
        assert host.errors == []
        program.terminate()
        await expect(page.get_by_role("status")).to_contain_text("has ended")
        await page.close()
        await other.close()


async def test_a_job_that_runs_is_waited_for_and_one_that_failed_says_why(look: Open, server: Client):
    asked = {"prompt": "a blue cup", "output": {"preview": False, "wait_seconds": 0}}
    host = await look(asked, await server.call_tool("generate_transparent", asked))
    await expect(host.view.locator("h1")).to_have_text("a blue cup")
    await expect(host.view.get_by_role("img", name="a blue cup")).to_be_visible()
    assert {name for name, _ in host.calls} == {"get_job"}
    await expect(host.view.get_by_role("button", name="Cancel")).to_be_hidden()
    host = await look(asked, await server.call_tool("generate_transparent", asked))
    await host.view.get_by_role("button", name="Cancel").click()
    await expect(host.view.locator("#status.wrong")).to_have_text("It was cancelled; it left no pictures.")
    refused = await server.call_tool("redraw_image", {"image": "none.png"})
    host = await look({"image": "none.png"}, refused)
    await expect(host.view.locator("#status.wrong")).to_contain_text("There is no file none.png")
    await expect(host.view.locator("h1")).to_have_text("Nothing to show")


async def test_what_no_browser_reads_is_shown_by_its_layers_or_flattened(
    look: Open, layers: CallToolResult, server: Client
):
    scene = next(image for image in facts_of(layers)["images"] if image["role"] == "background")
    output = {"preview": False, "format": "psd"}
    asked = {"layers": [{"image": scene["uri"], "name": "scene"}], "output": output}
    made = await server.call_tool("compose_layers", asked)
    host = await look(asked, made)
    for given in (asked, {"source": "elsewhere.psd"}):  # by its layers, and as the flattened picture inside
        host = await look(given, made)
        await expect(host.view.locator("h1")).to_have_text("Composition")
        assert near(await host.pixel(64, 64), picture(layers, "background").getpixel((64, 64)))


async def test_what_a_call_started_from_is_what_was_before(
    look: Open, apple: CallToolResult, folder: Path, server: Client
):
    Image.new("RGB", (64, 64), (10, 20, 200)).save(folder / "given.png")
    given = {"layers": [{"image": str(folder / "given.png")}], "output": {"preview": False}}
    ours = facts_of(await server.call_tool("compose_layers", given))["uri"]
    for image in (ours, ours.rpartition("/")[2], str(folder / "given.png")):
        host = await look({**APPLE, "image": image}, apple)
        await host.view.get_by_role("button", name="Before").click()
        await host.view.get_by_label("How much is shown").fill("50")
        assert near(await host.pixel(5, 64), (10, 20, 200, 255))
        assert not near(await host.pixel(120, 5), (10, 20, 200, 255))
    assert host.calls[-1] == ("inspect_image", {"image": str(folder / "given.png")})  # not ours: a small preview
