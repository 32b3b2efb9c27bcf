"""The viewer on this machine shows the files that were named, to whoever has the address first, and ends by itself."""

import base64
import hashlib
import io
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from PIL import Image

from layerdiffuse_mcp.errors import ImageError
from layerdiffuse_mcp.images.png import png_bytes
from layerdiffuse_mcp.images.read import read_picture
from layerdiffuse_mcp.server import viewing
from layerdiffuse_mcp.server.viewing import FILES, Answer, Viewing, answer_for

pytestmark = pytest.mark.anyio

MOST = 1_000_000


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """A picture of ours, a photograph that lies on its side, and a kind that browsers do not read."""
    made = Image.new("RGBA", (6, 4), (255, 0, 0, 128))
    made.save(tmp_path / "plain.png")
    pixels = read_picture(tmp_path / "plain.png").rgba
    (tmp_path / "ours.png").write_bytes(png_bytes(pixels, recipe={"request": {"prompt": "a red apple"}}))
    turned = Image.Exif()
    turned[0x0112] = 6
    made.convert("RGB").save(tmp_path / "photo.jpg", exif=turned)
    made.save(tmp_path / "old.tiff")
    return [tmp_path / name for name in ("ours.png", "photo.jpg", "old.tiff")]


async def shown(answer: Answer) -> list[dict[str, Any]]:
    """The pictures that the page is told of."""
    said = await answer({"jsonrpc": "2.0", "method": "ui/notifications/initialized"})
    assert [message["method"] for message in said] == ["ui/notifications/tool-input", "ui/notifications/tool-result"]
    return said[1]["params"]["structuredContent"]["images"]


async def read(answer: Answer, uri: str) -> dict[str, Any]:
    request = {"jsonrpc": "2.0", "id": 7, "method": "resources/read", "params": {"uri": uri}}
    [said] = await answer(request)
    assert said["id"] == 7
    return said


async def test_pictures_are_named_by_their_prompt_and_read_as_browsers_can(pictures: list[Path]):
    answer = answer_for(pictures, MOST)
    images = await shown(answer)
    assert [image["subject"] for image in images] == ["a red apple", "photo.jpg", "old.tiff"]
    assert [(image["width"], image["height"]) for image in images] == [(6, 4), (4, 6), (6, 4)]
    kinds = list[str]()
    for image, path in zip(images, pictures, strict=True):
        [content] = (await read(answer, image["uri"]))["result"]["contents"]
        kinds.append(content["mimeType"])
        data = base64.b64decode(content["blob"])
        assert data == path.read_bytes() or Image.open(io.BytesIO(data)).getpixel((0, 0)) == (255, 0, 0, 128)
    assert kinds == ["image/png", "image/jpeg", "image/png"]


async def test_layers_are_stacked_in_the_order_given(pictures: list[Path]):
    roles = [image["role"] for image in await shown(answer_for(pictures, MOST, stacked=True))]
    assert roles == ["1. ours", "2. photo", "3. old"]


async def test_there_are_no_tools_and_only_the_files_that_were_named(pictures: list[Path], tmp_path: Path):
    answer = answer_for(pictures[:1], MOST)
    [said] = await answer({"jsonrpc": "2.0", "id": 1, "method": "ui/initialize", "params": {}})
    assert said["result"]["hostCapabilities"] == {"serverResources": {}}
    for uri in (f"{FILES}1", f"{FILES}-1", f"{FILES}0/../1", f"file://{tmp_path}/plain.png", f"{FILES}٣", FILES):
        assert "Only the files that were named" in (await read(answer, uri))["error"]["message"]
    call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "compose_layers", "arguments": {}}}
    assert "error" in (await answer(call))[0]


async def test_a_file_that_has_gone_is_explained_and_one_that_is_no_picture_is_refused(pictures: list[Path]):
    answer = answer_for(pictures, MOST)
    pictures[0].unlink()
    assert "There is no file ours.png" in (await read(answer, f"{FILES}0"))["error"]["message"]
    pictures[1].write_text("words")
    with pytest.raises(ImageError, match="photo"):
        answer_for(pictures[1:], MOST)


@pytest.fixture
async def web(pictures: list[Path]) -> AsyncIterator[tuple[Viewing, httpx2.AsyncClient]]:
    """The viewer, and a browser on it."""
    viewer = Viewing(answer_for(pictures, MOST))
    transport = httpx2.ASGITransport(app=viewer.app())
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        yield viewer, client


def bearing(secret: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def test_the_token_is_good_once_and_the_key_after_it(web: tuple[Viewing, httpx2.AsyncClient]):
    viewer, client = web
    token = viewer.token
    for wrong in ({}, bearing("wrong"), bearing("None")):
        assert (await client.post("/key", headers=wrong)).status_code == 403
    key = (await client.post("/key", headers=bearing(token))).text
    assert (await client.post("/key", headers=bearing(token))).status_code == 403
    assert (await client.post("/key", headers=bearing("None"))).status_code == 403
    message = {"jsonrpc": "2.0", "id": 1, "method": "ui/initialize"}
    for secret in (token, "wrong"):
        assert (await client.post("/message", json=message, headers=bearing(secret))).status_code == 403
        assert (await client.post("/present", headers=bearing(secret))).status_code == 403
    assert (await client.post("/message", json=message, headers=bearing(key))).json()[0]["id"] == 1
    assert (await client.post("/message", content="{", headers=bearing(key))).status_code == 400


async def test_requests_for_other_hosts_and_from_other_pages_are_refused(web: tuple[Viewing, httpx2.AsyncClient]):
    viewer, client = web
    assert (await client.get("/", headers={"Host": "evil.example"})).status_code == 421
    elsewhere = {**bearing(viewer.token), "Origin": "http://evil.example"}
    assert (await client.post("/key", headers=elsewhere)).status_code == 403
    assert viewer.token is not None


@pytest.mark.parametrize("path", ["/", "/view.html"])
async def test_a_page_runs_nothing_but_what_is_inside_it(web: tuple[Viewing, httpx2.AsyncClient], path: str):
    viewer, client = web
    got = await client.get(path)
    policy = got.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for kind in ("script", "style"):
        [inside] = re.findall(rf"<{kind}[^>]*>(.*?)</{kind}>", got.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert (got.headers["cache-control"], got.headers["referrer-policy"]) == ("no-store", "no-referrer")
    assert str(viewer.token) not in got.text


async def test_it_ends_once_the_last_page_is_gone_for_a_while(
    web: tuple[Viewing, httpx2.AsyncClient], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(viewing, "GONE", 0.2)
    viewer, _ = web
    ended = anyio.Event()

    async def wait() -> None:
        await viewer.closed()
        ended.set()

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.sleep(0.3)
        assert not ended.is_set()  # nobody has come yet
        first, second = viewer.beats(), viewer.beats()
        await anext(first)
        await anext(second)
        await first.aclose()
        await anyio.sleep(0.3)
        assert not ended.is_set()  # the other page is open
        await second.aclose()
        with anyio.fail_after(30):
            await ended.wait()
