"""The models' tools: whatever a file is called, the answer can be sent."""

import json
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
from mcp import Client

from layerdiffuse_mcp.families.matting import MATTING
from layerdiffuse_mcp.settings import Settings
from tests.hub.files import LORA_KEYS, SD15_KEYS, tensors, write
from tests.results import facts_of, text_of

Connect = Callable[..., AbstractAsyncContextManager[Client]]

pytestmark = pytest.mark.anyio


async def test_the_networks_for_photographs_are_listed_with_what_to_call(connect: Connect):
    async with connect() as client:
        listed = await client.call_tool("list_models", {"subjects": "apple"})
        facts = facts_of(listed)["matting"]
        assert [network["name"] for network in facts] == [*MATTING]
        assert [network["licence"] for network in facts] == ["MIT", "MIT"]
        assert not any(network["prepared"] for network in facts)
        assert "birefnet-lite, for photographs, as model of cut_out: not on this machine" in text_of(listed)
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        taken = tools["cut_out"].input_schema["properties"]["model"]["enum"]
    assert taken == [network["name"] for network in facts]


async def test_textual_inversions_are_listed_with_their_vectors_and_why_one_cannot_be_used(
    connect: Connect, settings: Settings
):
    folder = settings.models_dir / "embeddings"
    write(folder / "charm.safetensors", tensors({"emb_params": (3, 768)}))
    write(folder / "xl.safetensors", tensors({"clip_l": (1, 768), "clip_g": (1, 1280)}))
    write(folder / "old.pt", b"pickle")
    write(folder / os.fsdecode(b"th\xe9.safetensors"), tensors({"emb_params": (3, 768)}))
    async with connect() as client:
        listed = text_of(await client.call_tool("list_models", {"subjects": "apple"}))
    assert "used where a prompt has their name: 'charm' (3 vectors of 768 numbers)" in listed
    assert "'xl' (1 vector of 768 and 1280 numbers)" in listed
    assert "'old' (cannot be used: old.pt is a pickle" in listed
    assert "has a name that UTF-8 cannot say: rename it" in listed


async def test_files_and_folders_whose_names_are_no_text_are_listed(connect: Connect, settings: Settings):
    models = settings.models_dir / os.fsdecode(b"mod\xe8les")
    write(models / os.fsdecode(b"caf\xe9.safetensors"), tensors(SD15_KEYS))
    write(models / "loras" / os.fsdecode(b"th\xe9.safetensors"), tensors(LORA_KEYS))
    async with connect(models_dir=models) as client:
        for tool in ("list_models", "server_status"):
            result = await client.call_tool(tool, {})
            json.dumps([text_of(result), result.structured_content], ensure_ascii=False).encode()
            assert "mod\\udce8les" in json.dumps(result.structured_content).replace("\\\\", "\\")
        listed = text_of(await client.call_tool("list_models", {}))
        assert "caf\\udce9" in listed
        assert "th\\udce9" in listed
        refused = await client.call_tool("prepare_model", {"model": "caf\\udce8"})
        assert refused.is_error
        assert "caf\\udce9" in text_of(refused)
