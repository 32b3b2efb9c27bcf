"""What the server has made can be listed, read and completed; prompts name real tools."""

import json
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import (
    BlobResourceContents,
    PromptReference,
    ResourceTemplateReference,
    TextContent,
    TextResourceContents,
)
from PIL import Image

from layerdiffuse_mcp.api.choices import SAMPLERS
from layerdiffuse_mcp.server import resources
from layerdiffuse_mcp.server.resources import PAGE
from layerdiffuse_mcp.server.tools import TOOLS

Connect = Callable[..., AbstractAsyncContextManager[Client]]

pytestmark = pytest.mark.anyio


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """An RGBA picture that may be read."""
    path = tmp_path / "dot.png"
    made = Image.new("RGBA", (16, 16))
    made.paste((255, 0, 0, 255), (4, 4, 12, 12))
    made.save(path)
    return path


async def compose(client: Client, picture: Path, **more: Any) -> dict[str, Any]:
    arguments = {"layers": [{"image": str(picture)}], "output": {"preview": False}, **more}
    result = await client.call_tool("compose_layers", arguments)
    assert not result.is_error, result.content
    assert result.structured_content is not None
    return result.structured_content


async def test_a_composition_can_be_read_by_its_address(client: Client, picture: Path):
    made = await compose(client, picture, canvas={"trim": True})
    assert (made["width"], made["height"]) == (8, 8)
    read = (await client.read_resource(made["uri"])).contents[0]
    assert isinstance(read, BlobResourceContents)
    job = (await client.read_resource(made["uri"].replace("images", "jobs").removesuffix("-1"))).contents[0]
    assert isinstance(job, TextResourceContents)
    assert json.loads(job.text)["images"][0]["path"] == made["path"]


async def test_a_picture_that_is_too_large_to_be_sent_is_named_with_what_can_be(
    client: Client, picture: Path, monkeypatch: pytest.MonkeyPatch
):
    made = await compose(client, picture)
    monkeypatch.setattr(resources, "LARGEST", Path(made["path"]).stat().st_size - 1)
    with pytest.raises(MCPError, match=r"are sent\. Open it by its path, or read a smaller view") as caught:
        await client.read_resource(made["uri"])
    assert made["path"] in str(caught.value)
    assert (await client.read_resource(made["uri"] + "/view?width=8")).contents


async def test_the_list_comes_in_pages_newest_first(connect: Connect, picture: Path):
    async with connect() as client:
        made = [await compose(client, picture) for _ in range(PAGE // 2 + 1)]
        first = await client.list_resources()
        assert len(first.resources) == PAGE
        assert str(first.resources[1].uri) == made[-1]["uri"]
        assert first.next_cursor is not None
        second = await client.list_resources(cursor=first.next_cursor)
        assert [str(entry.uri) for entry in second.resources][-1] == made[0]["uri"]
        assert second.next_cursor is None


async def test_a_made_up_cursor_is_refused(client: Client):
    with pytest.raises(MCPError, match="cursor"):
        await client.list_resources(cursor="nonsense")


@pytest.mark.parametrize(
    "uri", ["layerdiffuse://images/job-0-1", "layerdiffuse://jobs/job-0", "layerdiffuse://images/1"]
)
async def test_what_was_never_made_is_not_found(client: Client, uri: str):
    with pytest.raises(MCPError, match="There is no"):
        await client.read_resource(uri)


async def test_ids_models_samplers_and_schedules_are_completed(connect: Connect, picture: Path):
    async with connect() as client:
        made = await compose(client, picture)
        images = ResourceTemplateReference(type="ref/resource", uri="layerdiffuse://images/{id}")
        sprites = PromptReference(type="ref/prompt", name="game_sprites")
        typed = [(images, "id", "job-"), (sprites, "model", "po"), (sprites, "sampler", "dpm++"), (sprites, "x", "")]
        found = [
            (await client.complete(reference, {"name": name, "value": value})).completion.values
            for reference, name, value in typed
        ]
    assert found[0] == [made["uri"].rpartition("/")[2]]
    assert found[1] == ["pocket"]
    assert found[2] == [name for name in SAMPLERS if name.startswith("DPM++")]
    assert found[3] == []


async def test_the_templates_say_a_media_type_where_all_that_they_lead_to_has_one(client: Client):
    templates = (await client.list_resource_templates()).resource_templates
    assert {template.name: template.mime_type for template in templates} == {
        "image": None,
        "view": None,
        "job": "application/json",
    }


async def test_prompts_name_only_tools_that_exist(client: Client):
    values = {"subjects": "a, b", "product": "a cup", "subject": "a cat", "scene": "a wood", "model": "pocket"}
    known, named = {row.name for row in TOOLS}, set[str]()
    for prompt in (await client.list_prompts()).prompts:
        assert prompt.title
        assert all(argument.description for argument in prompt.arguments or ())
        needed = {argument.name: values[argument.name] for argument in prompt.arguments or () if argument.required}
        message = (await client.get_prompt(prompt.name, {**needed, "model": "pocket"})).messages[0]
        assert isinstance(message.content, TextContent)
        text = message.content.text
        named |= set(re.findall(r"\b(?:generate|compose|inspect|list|edit|make|cut|redraw)_\w+", text))
        assert "pocket" in text
    assert {"generate_set", "redraw_image", "make_sheet", "cut_out", "compose_layers"} <= named <= known


async def test_an_inspection_says_what_alpha_holds(client: Client, picture: Path):
    result = await client.call_tool("inspect_image", {"image": str(picture), "background": "black"})
    assert result.structured_content is not None
    assert result.structured_content["alpha"]["bbox"] == [4, 4, 12, 12]
    assert result.structured_content["alpha"]["transparent"] == 0.75
    assert [block.type for block in result.content] == ["text", "image"]


UNUSUAL = {
    "animated": ("GIF", "RGB", "animated: only the first of 2 is used"),
    "CMYK": ("JPEG", "CMYK", "CMYK converted"),
    "16 bits": ("PNG", "I;16", "16 bits a channel reduced to 8"),
}


@pytest.mark.parametrize("case", UNUSUAL)
async def test_an_unusual_picture_is_read_and_it_is_said_how(client: Client, tmp_path: Path, case: str):
    format, mode, words = UNUSUAL[case]
    frames = [Image.new(mode, (16, 16), colour) for colour in (200 if mode == "I;16" else "red", 0)]
    more = {"save_all": True, "append_images": frames[1:]} if case == "animated" else {}
    frames[0].save(tmp_path / f"unusual.{format.lower()}", format, **more)
    result = await client.call_tool("inspect_image", {"image": str(tmp_path / f"unusual.{format.lower()}")})
    assert not result.is_error, result.content
    assert words in str(result.content[0])


async def test_layers_that_do_not_fit_into_memory_are_refused_unread(client: Client, tmp_path: Path):
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 6, 0, 0, 0)
    huge = tmp_path / "huge.png"
    huge.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")))
    for tool, arguments in {
        "inspect_image": {"image": str(huge)},
        "compose_layers": {"layers": [{"image": str(huge)}]},
    }.items():
        result = await client.call_tool(tool, arguments)
        assert result.is_error
        assert "too large" in str(result.content[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": []}, "give at least one"),
        ({"layers": [{"image": "dot.png", "scale": 0}]}, "must be more than 0"),
        ({"layers": [{"image": "dot.png", "opacity": 2}]}, "must be at most 1"),
        ({"layers": [{"image": "dot.png", "size": 2}]}, "size"),
        ({"layers": [{"image": "none.png"}]}, "There is no file"),
        ({"layers": [{"image": "/etc/passwd"}]}, "may be read"),
        ({"layers": [{"image": "dot.png"}], "width": 10}, "is now `canvas.size`"),
        ({"layers": [{"image": "dot.png"}], "output": {"format": "gif"}}, "png, webp, jpg, psd, ora"),
        ({"layers": [{"image": "dot.png"}], "background": "no-such-colour"}, "There is no file"),
    ],
)
async def test_a_bad_composition_is_refused_in_words(
    client: Client, picture: Path, arguments: dict[str, Any], words: str
):
    layers = [{**layer, "image": layer["image"].replace("dot.png", str(picture))} for layer in arguments["layers"]]
    result = await client.call_tool("compose_layers", {**arguments, "layers": layers})
    assert result.is_error
    assert words in str(result.content[0])
