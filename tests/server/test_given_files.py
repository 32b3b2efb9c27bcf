"""Files that an agent names, through the tools: what a job draws from is what was checked, and nothing else is told."""

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import BlobResourceContents, ResourceLink
from PIL import Image, PngImagePlugin

from layerdiffuse_mcp.api.plan import GivenPicture
from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.images.png import png_bytes
from layerdiffuse_mcp.recipes.recipe import recipe_of
from layerdiffuse_mcp.server.contents import PREFIX
from tests.results import facts_of, text_of
from tests.tasks import plan_of

Connect = Callable[..., AbstractAsyncContextManager[Client]]

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where servers keep their copies."""
    folder = tmp_path / "copies"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def cup(tmp_path: Path) -> Path:
    """A picture that may be read."""
    path = tmp_path / "cup.png"
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(path)
    return path


@pytest.fixture
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that may not be read."""
    return tmp_path_factory.mktemp("outside")


def picture_with(path: Path, recipe: dict[str, Any]) -> Path:
    path.write_bytes(png_bytes(np.zeros((8, 8, 4), np.uint8), recipe=recipe))
    return path


def edit_recipe(cup: Path, name: str, sha256: str | None = None) -> dict[str, Any]:
    """Of an edit of `cup` that was called `name` then."""
    digest = sha256 or hashlib.sha256(cup.read_bytes()).hexdigest()
    pictures = {"image": GivenPicture(name=name, sha256=digest, bytes=cup.stat().st_size)}
    plan = plan_of(GenerateRequest(prompt="steps 1", image=cup, seed=1), model="pocket", pictures=pictures)
    return recipe_of(plan, weights={}, device="cpu", dtype="float32")


async def inspected(client: Client, name: str) -> str:
    result = await client.call_tool("inspect_image", {"image": name, "preview": False})
    return ("error: " if result.is_error else "") + text_of(result)


async def test_a_job_reads_a_copy_that_goes_when_it_has_ended(connect: Connect, cup: Path, copies: Path):
    async with connect() as client:
        arguments = {"prompt": "steps 40", "image": str(cup), "output": {"wait_seconds": 0}}
        job = facts_of(await client.call_tool("edit_transparent", arguments))
        [copy] = copies.glob(f"{PREFIX}*/*/*")
        assert (copy.name, copy.read_bytes()) == ("cup.png", cup.read_bytes())
        await client.call_tool("cancel_job", {"job_id": job["job_id"]})
        with anyio.fail_after(60):
            while copy.exists():
                await anyio.sleep(0.01)
    assert list(copies.iterdir()) == []


async def test_no_copy_stays_of_a_call_that_is_refused(connect: Connect, cup: Path, copies: Path):
    async with connect(queue_size=1) as client:
        for arguments in (
            {"options": {"strength": 3}},
            {"options": {"model": "poket"}},
            {"mask": "/etc/passwd"},
            {"mask": "none.png"},
        ):
            given = {"prompt": "x", "image": str(cup), **arguments}
            assert (await client.call_tool("edit_transparent", given)).is_error
        assert list(copies.glob(f"{PREFIX}*/*")) == []


async def test_what_is_no_picture_is_refused_at_once(connect: Connect, cup: Path):
    cup.write_text("no picture")
    async with connect() as client:
        for tool, arguments in {
            "edit_transparent": {"prompt": "x", "image": str(cup)},
            "encode_transparent_image": {"image": str(cup)},
        }.items():
            result = await client.call_tool(tool, arguments)
            assert "cup.png is not a picture" in text_of(result)
        assert facts_of(await client.call_tool("list_jobs", {}))["total"] == 0


async def test_redraw_image_opens_nothing_outside_and_waits_for_nothing(connect: Connect, cup: Path, outside: Path):
    picture_with(outside / "real.png", edit_recipe(cup, "cup.png"))
    os.mkfifo(cup.with_name("pipe.png"))
    async with connect() as client:
        with anyio.fail_after(60):
            for name in ("/dev/zero", outside / "real.png", outside / "none.png"):
                result = await client.call_tool("redraw_image", {"image": str(name)})
                assert "lies outside" in text_of(result)
            result = await client.call_tool("redraw_image", {"image": str(cup.with_name("pipe.png"))})
            assert "cannot be read" in text_of(result)


async def test_a_recipe_cannot_have_a_picture_outside_read(connect: Connect, cup: Path, outside: Path):
    secret = outside / "cup.png"
    Image.new("RGBA", (9, 9), "blue").save(secret)
    said = set[str]()
    async with connect() as client:
        for name in (secret, outside / "none" / "cup.png"):
            source = picture_with(cup.with_name("recipe.png"), edit_recipe(secret, str(name)))
            result = await client.call_tool("redraw_image", {"image": str(source)})
            assert result.is_error
            said.add(text_of(result))
    assert len(said) == 1


async def test_a_relative_name_in_a_recipe_is_found_by_content_only(
    connect: Connect, cup: Path, copies: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
):
    """It was checked as output/cup.png and opened as cup.png in the working directory."""
    monkeypatch.chdir(outside)
    Image.new("RGBA", (8, 8), "blue").save(outside / "cup.png")
    source = picture_with(cup.with_name("recipe.png"), edit_recipe(cup, "cup.png"))
    async with connect() as client:
        handle = await client.call_tool(
            "redraw_image",
            {"image": str(source), "changes": {"prompt": "steps 40"}, "output": {"wait_seconds": 0}},
        )
        [copy] = copies.glob(f"{PREFIX}*/*/*")
        assert copy.read_bytes() == cup.read_bytes()
        await client.call_tool("cancel_job", {"job_id": facts_of(handle)["job_id"]})


async def test_a_relative_picture_is_the_one_that_was_checked(
    connect: Connect, cup: Path, copies: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(outside)
    Image.new("RGBA", (8, 8), "blue").save(outside / "mug.png")
    async with connect() as client:
        assert "There is no file" in await inspected(client, "mug.png")
        (cup.parent / "out").mkdir()
        cup.rename(cup.parent / "out" / "mug.png")
        given = {"prompt": "steps 40", "image": "mug.png", "output": {"wait_seconds": 0}}
        handle = await client.call_tool("edit_transparent", given)
        [copy] = copies.glob(f"{PREFIX}*/*/*")
        assert copy.read_bytes() == (cup.parent / "out" / "mug.png").read_bytes()
        await client.call_tool("cancel_job", {"job_id": facts_of(handle)["job_id"]})


async def test_a_recipe_of_any_text_can_be_inspected_and_the_session_lives(connect: Connect, cup: Path):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("layerdiffuse", '{"prompt": "\\ud800", "\\udfff": ["\\udc80"]}')
    Image.new("RGBA", (8, 8)).save(cup, pnginfo=info)
    async with connect() as client:
        assert "holds the recipe" in await inspected(client, str(cup))
        assert not (await client.call_tool("list_jobs", {})).is_error
        result = await client.call_tool("redraw_image", {"image": str(cup)})
        assert "format" in text_of(result)


async def test_a_file_whose_name_is_not_utf_8_is_read_behind_a_link_and_the_session_lives(connect: Connect, cup: Path):
    for name, content in ((b"a\xffcup.png", cup.read_bytes()), (b"no\xffpicture.png", b"text")):
        raw = os.path.join(os.fsencode(cup.parent), name)
        Path(os.fsdecode(raw)).write_bytes(content)
        cup.unlink(missing_ok=True)
        os.symlink(raw, cup)
        async with connect() as client:
            assert name.decode("utf-8", "replace").replace("\ufffd", "?") in await inspected(client, str(cup))
            layers = {"layers": [{"image": str(cup)}], "output": {"format": "ora"}}
            given = {"prompt": "steps 1", "image": str(cup), "output": {"preview": False}}
            for tool, arguments in (("compose_layers", layers), ("edit_transparent", given)):
                assert (await client.call_tool(tool, arguments)).is_error == (content == b"text")


async def test_a_file_is_what_its_name_says_and_an_id_what_a_job_made(connect: Connect, cup: Path):
    async with connect() as client:
        made = facts_of(
            await client.call_tool("compose_layers", {"layers": [{"image": str(cup)}], "output": {"preview": False}})
        )
        identifier = made["uri"].rpartition("/")[2]
        job = identifier.rpartition("-")[0]
        for name in ("job-notes.png", "job-1", "job-12345678-1"):
            cup.with_name("out").joinpath(name).write_bytes(cup.read_bytes())
            assert "There is no" not in await inspected(client, name)
        for name in (identifier, made["uri"]):
            assert made["path"] in await inspected(client, name)
        assert f"{job!r} is a job and no picture: {job} has 1, numbered from {identifier}" in await inspected(
            client, job
        )
        assert "There is no job 'job-863032aa'" in await inspected(client, "job-863032aa")
        assert "There is no picture" in await inspected(client, f"{job}-9")
        assert "error" in await inspected(client, f"layerdiffuse://images/{job}-{'9' * 5000}")


async def test_file_addresses_are_decoded(connect: Connect, tmp_path: Path, cup: Path):
    name = tmp_path / "a cup #1 100% größer.png"
    cup.rename(name)
    decoded = str(name)
    async with connect() as client:
        for address in (name.as_uri(), name.as_uri().replace("file:///", "FILE://localhost/")):
            assert decoded in await inspected(client, address)
        assert "another machine" in await inspected(client, name.as_uri().replace("file://", "file://elsewhere"))
        assert "lies outside" in await inspected(client, "file:///etc/%70asswd")
        assert "no name of a file" in await inspected(client, f"file://{tmp_path}/a%00b.png")


TYPES = {
    "png": "image/png",
    "webp": "image/webp",
    "jpg": "image/jpeg",
    "psd": "image/vnd.adobe.photoshop",
    "ora": "image/openraster",
}


async def test_what_was_exported_is_read_with_its_media_type(connect: Connect, cup: Path):
    async with connect() as client:
        for format, kind in TYPES.items():
            arguments = {"layers": [{"image": str(cup)}], "output": {"format": format, "preview": False}}
            result = await client.call_tool("compose_layers", arguments)
            made = facts_of(result)
            [read] = (await client.read_resource(made["uri"])).contents
            assert isinstance(read, BlobResourceContents)
            assert base64.b64decode(read.blob) == Path(made["path"]).read_bytes()
            [link] = [block for block in result.content if isinstance(block, ResourceLink)]
            listed = {str(entry.uri): entry.mime_type for entry in (await client.list_resources()).resources}
            assert {read.mime_type, link.mime_type, listed[made["uri"]]} == {kind}


async def test_a_resource_is_a_file_of_this_server_or_nothing(connect: Connect, cup: Path, outside: Path):
    (outside / "secret.png").write_bytes(b"a secret")
    async with connect() as client:
        made = facts_of(
            await client.call_tool("compose_layers", {"layers": [{"image": str(cup)}], "output": {"preview": False}})
        )
        path = Path(made["path"])

        def link_outside() -> None:
            path.symlink_to(outside / "secret.png")

        def link_beside() -> None:
            path.symlink_to(cup)  # may be read, and is none of this server's

        for replace in (link_outside, link_beside, lambda: os.mkfifo(path), path.mkdir):
            path.unlink()
            replace()
            with anyio.fail_after(60):
                with pytest.raises(MCPError, match="something else is in its place"):
                    await client.read_resource(made["uri"])
        job = await client.read_resource(made["uri"].replace("images", "jobs").removesuffix("-1"))
        assert json.loads(job.contents[0].text)["status"] == "done"  # pyright: ignore
