"""A picture is shown by its address as it is asked for, bounded, in its true media type, and leaves no file."""

import base64
import io
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import BlobResourceContents, ResourceTemplateReference
from PIL import Image

from layerdiffuse_mcp.images.view import MAX_BYTES, MAX_VIEW
from layerdiffuse_mcp.server.resources import VIEW
from layerdiffuse_mcp.server.services import IMAGES
from layerdiffuse_mcp.settings import Settings
from tests.results import facts_of, text_of

Connect = Callable[..., AbstractAsyncContextManager[Client]]

pytestmark = pytest.mark.anyio
TYPES = {"PNG": "image/png", "WEBP": "image/webp", "JPEG": "image/jpeg"}


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A translucent red box in the middle of nothing."""
    made = Image.new("RGBA", (40, 20))
    made.paste((255, 0, 0, 128), (10, 5, 30, 15))
    made.save(tmp_path / "box.png")
    return tmp_path / "box.png"


async def made_of(client: Client, picture: Path, **output: Any) -> str:
    """Address of a picture of this server's that looks like a given one."""
    given = {"layers": [{"image": str(picture)}], "output": {"preview": False, **output}}
    return str(facts_of(await client.call_tool("compose_layers", given))["uri"])


async def view(client: Client, uri: str, **asked: str) -> Image.Image:
    """What a view shows; its media type is checked."""
    picture_id = uri.rpartition("/")[2]
    [read] = (await client.read_resource(VIEW.expand({"id": picture_id, **asked}))).contents
    assert isinstance(read, BlobResourceContents)
    data = base64.b64decode(read.blob)
    assert len(data) <= MAX_BYTES
    shown = Image.open(io.BytesIO(data))
    assert read.mime_type == TYPES[str(shown.format)]
    shown.load()
    return shown


async def test_a_view_is_a_part_at_a_size_on_a_background_and_leaves_no_file(
    connect: Connect, picture: Path, settings: Settings
):
    async with connect() as client:
        uri = await made_of(client, picture)
        before = sorted(settings.output.rglob("*"))
        whole = await view(client, uri)
        assert (whole.format, whole.size, whole.getpixel((20, 10))) == ("PNG", (40, 20), (255, 0, 0, 128))
        assert whole.info == {}
        assert (await view(client, uri, width="20")).size == (20, 10)
        assert (await view(client, uri, width="2000")).size == (40, 20)
        assert (await view(client, uri, crop="visible")).size == (20, 10)
        assert (await view(client, uri, crop="10,5,30,7")).size == (20, 2)
        red = (await view(client, uri, background="white", crop="visible")).getpixel((5, 5))
        assert red == (255, 127, 127)
        checked = await view(client, uri, background="checkerboard")
        assert checked.mode == "RGB"
        flat = await view(client, uri, format="jpg")
        assert (flat.format, min(flat.crop((0, 0, 4, 4)).getextrema())[0] > 240) == ("JPEG", True)
        webp = await view(client, uri, format="webp", width="20", crop="visible")
        assert (webp.format, webp.mode, webp.size) == ("WEBP", "RGBA", (20, 10))
        assert sorted(settings.output.rglob("*")) == before


async def test_an_address_outlasts_the_server(connect: Connect, picture: Path):
    async with connect() as client:
        uri = await made_of(client, picture)
    async with connect() as client:
        assert (await view(client, uri, width="10")).size == (10, 5)


async def test_a_view_is_bounded_in_pixels_and_bytes(connect: Connect, tmp_path: Path):
    noise = np.random.default_rng(1).integers(0, 256, (700, 1400, 4), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png", compress_level=1)
    Image.new("RGBA", (1, 3000), "red").save(tmp_path / "thin.png")
    async with connect() as client:
        noise, thin = [await made_of(client, tmp_path / name) for name in ("noise.png", "thin.png")]
        for format in ("png", "webp", "jpg"):
            shown = await view(client, noise, format=format)
            assert shown.width < 1400 or format != "png"  # which has the most bytes
            assert shown.width == pytest.approx(2 * shown.height, abs=2)
            assert max((await view(client, thin, format=format)).size) <= MAX_VIEW


REFUSED = [
    ("?widht=20", "A view has no parameter 'widht'. Did you mean width? Allowed: width, format, background, crop."),
    ("?width=0", "width: 0 is out of range; allowed is 1 to 2048"),
    ("?width=2049", "out of range"),
    ("?width=-5", "width: '-5' is no number of pixels"),
    ("?width=", "is no number of pixels"),
    (f"?width={'9' * 4000}", "is no number of pixels"),
    ("?format=gif", "Allowed: png, webp, jpg."),
    ("?background=reddish", "background 'reddish' is not known"),
    ("?background=ff0000", "lacks its #"),
    ("?crop=1,2,3", "crop: '1,2,3' is no part of a picture"),
    ("?crop=0,0,41,20", "is not inside the picture, which is 0,0,40,20"),
    ("?crop=5,5,5,5", "is not inside the picture"),
    ("?crop=../../etc", "Unknown resource"),
    ("/more", "Unknown resource"),
]


async def test_a_view_that_cannot_be_is_refused_in_words(connect: Connect, picture: Path):
    async with connect() as client:
        uri = await made_of(client, picture)
        for query, words in REFUSED:
            with pytest.raises(MCPError) as refused:
                await client.read_resource(f"{uri}/view{query}")
            assert words in str(refused.value), query
        with pytest.raises(MCPError, match="There is no job"):
            await client.read_resource("layerdiffuse://images/job-0-1/view")


async def test_no_view_of_what_is_gone_or_not_ours_and_one_of_a_document_of_layers(
    connect: Connect, picture: Path, tmp_path: Path
):
    async with connect() as client:
        gone, linked = await made_of(client, picture), await made_of(client, picture)
        layered = await made_of(client, picture, format="psd")
        for uri, link in ((gone, None), (linked, tmp_path / "secret.png")):
            found = facts_of(await client.call_tool("inspect_image", {"image": uri, "preview": False}))
            path = Path(found["path"])
            path.unlink()
            if link:
                path.symlink_to(link)
        for uri, words in {gone: "is gone", linked: "something else"}.items():
            with pytest.raises(MCPError, match=words):
                await client.read_resource(f"{uri}/view?width=5")
        assert (await client.read_resource(f"{layered}/view?width=5")).contents


async def test_what_a_view_takes_is_completed(connect: Connect, picture: Path):
    template = ResourceTemplateReference(type="ref/resource", uri=str(VIEW))
    async with connect() as client:
        uri = await made_of(client, picture)
        for name, typed, value in (
            ("id", "job", uri.rpartition("/")[2]),
            ("format", "w", "webp"),
            ("crop", "v", "visible"),
        ):
            completed = await client.complete(template, {"name": name, "value": typed})
            assert completed.completion.values == [value]


async def test_a_view_given_as_a_picture_is_refused_with_the_picture_that_it_is_of(connect: Connect, picture: Path):
    async with connect() as client:
        uri = await made_of(client, picture)
        refused = await client.call_tool("inspect_image", {"image": f"{uri}/view?width=64"})
        assert refused.is_error
        assert f"Give the picture itself: {uri.removeprefix(IMAGES)}." in text_of(refused)
