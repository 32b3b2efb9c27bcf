"""What an agent is told before it hands a picture on, through the real client."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
from mcp import Client
from mcp_types import PromptReference
from PIL import Image

from layerdiffuse_mcp.settings import Settings
from tests.results import facts_of, text_of

Connect = Callable[..., AbstractAsyncContextManager[Client]]

pytestmark = pytest.mark.anyio


async def test_the_words_of_a_small_model_are_listed_and_found(connect: Connect):
    async with connect() as client:
        [everything] = facts_of(await client.call_tool("list_models", {}))["vocabularies"]
        assert everything["model"] == "pocket"
        assert len(everything["subjects"]) > 300
        assert (everything["styles"], everything["materials"]) == (["3d", "flat"], ["glass", "glowing"])
        found = await client.call_tool("list_models", {"subjects": "apple"})
        [words] = facts_of(found)["vocabularies"]
        assert words["subjects"] == ["red apple", "green apple", "pineapple"]
        assert "Subjects that pocket knows: red apple, green apple, pineapple." in text_of(found)
        assert "guitar" not in text_of(found)


@pytest.mark.parametrize("text", ["zzz", "\x00", "(" * 200])
async def test_a_word_that_no_subject_has_is_said(connect: Connect, text: str):
    async with connect() as client:
        result = await client.call_tool("list_models", {"subjects": text})
        assert facts_of(result)["vocabularies"][0]["subjects"] == []
        assert "knows nothing with" in text_of(result)


async def test_what_is_no_word_is_refused(connect: Connect):
    async with connect() as client:
        for wrong in ("x" * 201, 5, ["apple"]):
            result = await client.call_tool("list_models", {"subjects": wrong})
            assert result.is_error
            assert "subjects" in text_of(result)


async def test_subjects_complete_a_prompts_argument(connect: Connect):
    async with connect() as client:
        reference = PromptReference(type="ref/prompt", name="layered_poster")
        done = await client.complete(reference, {"name": "subject", "value": "guit"})
        assert done.completion.values == ["guitar"]
        done = await client.complete(reference, {"name": "scene", "value": "wood"})
        assert done.completion.values == ["wooden table"]
        sprites = PromptReference(type="ref/prompt", name="game_sprites")
        done = await client.complete(sprites, {"name": "subjects", "value": "a fish, guit"})
        assert done.completion.values == ["a fish, guitar"]
        done = await client.complete(sprites, {"name": "style", "value": "fl"})
        assert done.completion.values == ["flat"]


async def test_a_large_size_and_an_opaque_picture_are_refused_with_what_to_do(connect: Connect, settings: Settings):
    settings.output.mkdir(parents=True)
    photo = settings.output / "photo.jpg"
    Image.new("RGB", (640, 480)).save(photo)
    async with connect(device="cpu") as client:
        large = await client.call_tool("generate_transparent", {"prompt": "a rocket", "size": "1200x630"})
        assert large.is_error
        assert "options.fit" in text_of(large)
        edit = await client.call_tool("edit_transparent", {"prompt": "a rocket", "image": str(photo)})
        assert edit.is_error
        assert "cut_out" in text_of(edit)
        fit = {"prompt": "a rocket", "size": "1200x630", "options": {"fit": "kontain"}}
        assert "contain" in text_of(await client.call_tool("generate_transparent", fit))
