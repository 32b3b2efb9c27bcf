"""Pictures of ours that hold no recipe: what they are is said, and which tool makes them again."""

from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from PIL import Image

from tests.results import facts_of, text_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def mug(tmp_path: Path) -> str:
    """A red square on white, in a folder that may be read."""
    picture = Image.new("RGB", (32, 32), "white")
    picture.paste((200, 30, 30), (8, 8, 24, 24))
    picture.save(tmp_path / "mug.png")
    return str(tmp_path / "mug.png")


COMPOSED = "It is a composition: compose_layers changes it, with this file as source"
MADE: dict[str, tuple[str, dict[str, Any], str]] = {
    "a composition": ("compose_layers", {"layers": ["MUG"]}, COMPOSED),
    "an ora": ("compose_layers", {"layers": ["MUG"], "output": {"format": "ora"}}, COMPOSED),
    "a psd": ("compose_layers", {"layers": ["MUG"], "output": {"format": "psd"}}, COMPOSED),
    "a webp": ("compose_layers", {"layers": ["MUG"], "output": {"format": "webp"}}, "keeps no record of that"),
    "a sheet": ("make_sheet", {"images": ["MUG"]}, "It is a sheet: redraw one of the pictures in it"),
    "a cut-out": ("cut_out", {"image": "MUG"}, "cut_out makes it again"),
    "a cut-out by another name": ("cut_out", {"image": "MUG", "output": {"name": "a-decoded"}}, "cut_out makes it"),
}


@pytest.mark.parametrize("case", MADE)
async def test_a_picture_that_nothing_was_drawn_for_is_said_to_be_what_it_is(client: Client, mug: str, case: str):
    tool, arguments, says = MADE[case]
    given = {name: [mug] if value == ["MUG"] else mug if value == "MUG" else value for name, value in arguments.items()}
    made = facts_of(await client.call_tool(tool, given))
    for name in (made["path"], made["uri"]):
        refused = await client.call_tool("redraw_image", {"image": name})
        assert refused.is_error
        assert f"{Path(made['path']).name} holds no recipe. " in text_of(refused)
        assert says in text_of(refused)
    looked_at = text_of(await client.call_tool("inspect_image", {"image": made["path"], "preview": False}))
    assert ("It holds a composition: mug." if says == COMPOSED else says) in looked_at


async def test_the_sheet_of_a_set_is_one(client: Client):
    made = facts_of(await client.call_tool("generate_set", {"subjects": ["square red"], "output": {"preview": False}}))
    refused = await client.call_tool("redraw_image", {"image": made["sheet"]["path"]})
    assert "It is a sheet: redraw one of the pictures in it" in text_of(refused)


async def test_what_was_rewritten_or_is_anothers_is_said_to_be(client: Client, mug: str):
    made = facts_of(await client.call_tool("cut_out", {"image": mug}))
    with Image.open(made["path"]) as picture:
        picture.load()
    picture.save(made["path"], dpi=(72, 72))
    rewritten = await client.call_tool("redraw_image", {"image": made["path"]})
    assert "has been rewritten since it was made here" in text_of(rewritten)
    anothers = await client.call_tool("redraw_image", {"image": mug})
    assert "mug.png holds no recipe. Give a PNG or WebP that layerdiffuse-mcp drew" in text_of(anothers)
    looked_at = await client.call_tool("inspect_image", {"image": mug, "preview": False})
    assert "It holds no recipe." in text_of(looked_at).splitlines()
