"""What leaves the server: always JSON in UTF-8, and never more than a little of what was given."""

import json
import os
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp.shared.message import SessionMessage
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    PARSE_ERROR,
    JSONRPCError,
    JSONRPCNotification,
    JSONRPCResponse,
    jsonrpc_message_adapter,
)
from PIL import Image, PngImagePlugin
from pydantic import ValidationError

from layerdiffuse_mcp.server.sendable import utf8
from layerdiffuse_mcp.server.stdio import checked, refusal
from layerdiffuse_mcp.wording import quoted
from tests.results import text_of

Connect = Callable[..., AbstractAsyncContextManager[Client]]

pytestmark = pytest.mark.anyio

LONG = "y" * 1_000_000


def answer(**result: Any) -> SessionMessage:
    return SessionMessage(JSONRPCResponse(jsonrpc="2.0", id=7, result=result))


@pytest.mark.parametrize("unsayable", ["\udcff", b"\xff", object()], ids=["surrogate", "bytes", "object"])
def test_an_answer_that_is_no_json_becomes_an_error_of_its_request(unsayable: object):
    sent = checked(answer(found=unsayable))
    assert sent is not None
    assert isinstance(sent.message, JSONRPCError)
    assert (sent.message.id, sent.message.error.code) == (7, INTERNAL_ERROR)
    sent.message.model_dump_json()


def test_an_answer_that_is_json_stays_as_it_is_and_a_notification_that_is_not_is_left_out():
    fine = answer(found="é?")
    assert checked(fine) is fine
    assert checked(SessionMessage(JSONRPCNotification(jsonrpc="2.0", method="x", params={"a": "\ud800"}))) is None


CALL = '{"jsonrpc":"2.0","id":7,"method":"tools/call","params":%s}'


@pytest.mark.parametrize(
    ("line", "id", "code"),
    [
        (CALL % r'{"prompt":"a cat \ud83d"}', 7, PARSE_ERROR),
        (CALL.replace("7", r'"\ud83d"') % "{}", None, PARSE_ERROR),
        ("\ufeff" + CALL % "{}", 7, PARSE_ERROR),
        ("hello", None, PARSE_ERROR),
        ("[" * 100_000, None, PARSE_ERROR),
        (CALL % "5", 7, INVALID_REQUEST),
        (f"[{CALL % '{}'}]", None, INVALID_REQUEST),
        (r'{"jsonrpc":"2.0","id":7,"result":"\ud83d"}', None, PARSE_ERROR),
        *((CALL.replace("7", odd) % "5", None, INVALID_REQUEST) for odd in ("true", "1.5", "[]", "{}")),
        *((CALL.replace("7", odd) % r'"\ud83d"', None, PARSE_ERROR) for odd in ("true", "1.5", "[]", "{}")),
    ],
)
def test_a_line_that_is_no_message_is_answered_with_an_error_and_logged(
    line: str, id: int | None, code: int, caplog: pytest.LogCaptureFixture
):
    answered = refusal(misread(line))
    assert answered is not None
    assert isinstance(answered.message, JSONRPCError)
    assert (answered.message.id, answered.message.error.code) == (id, code)
    assert len(json.loads(answered.message.model_dump_json())["error"]["message"]) < 200
    assert len(caplog.records) == 1


@pytest.mark.parametrize("line", ["", " \n", r'{"jsonrpc":"2.0","method":"notifications/x","params":"\ud83d"}'])
def test_an_empty_line_and_a_damaged_notification_are_not_answered(line: str):
    assert refusal(misread(line)) is None


def misread(line: str) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        jsonrpc_message_adapter.validate_json(line, by_name=False)
    return caught.value


def test_lone_surrogates_are_replaced_wherever_they_are():
    given = {"a\ud800": ["\udcff.png", ("\udfff", 1, None)], "b": "𝄞 é"}
    assert utf8(given) == {"a?": ["?.png", ["?", 1, None]], "b": "𝄞 é"}


def odd_picture(folder: Path) -> Path:
    """A picture with a name that is not UTF-8 and a recipe with half a pair."""
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt("layerdiffuse", json.dumps({"prompt": "\ud800"}))
    notes.add_itxt("parameters", "a cup")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / os.fsdecode(b"odd-\xff.png")
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(path, pnginfo=notes)
    return path


async def test_names_that_are_not_utf_8_are_told_with_a_mark_in_their_place(connect: Connect, tmp_path: Path):
    odd = odd_picture(tmp_path / "out")
    (tmp_path / "out" / "link.png").symlink_to(odd)
    async with connect() as client:
        result = await client.call_tool("inspect_image", {"image": "link.png"})
        assert not result.is_error
        json.dumps(result.model_dump(mode="json"), ensure_ascii=False).encode()
        assert re.search(r"odd-[?]\.png", text_of(result))


async def test_answers_quote_at_most_a_little_of_what_was_given(connect: Connect):
    async with connect() as client:
        for tool, arguments in (
            ("get_job", {"job_ids": [LONG]}),
            ("cancel_job", {"job_id": LONG}),
            ("list_jobs", {"status": LONG}),
            ("list_jobs", {LONG: 1}),
            *(
                ("generate_transparent", {"prompt": "x", "options": {name: LONG}})
                for name in ("model", "sampler", "method", "steps", "loras", LONG)
            ),
            ("generate_transparent", {"prompt": "x", "size": LONG}),
            ("generate_transparent", {"prompt": "x", "options": LONG}),
            ("redraw_image", {"image": "job-" + LONG}),
            ("redraw_image", {"parameters": f"x\nSteps: 2, Sampler: {LONG}, Seed: 1"}),
            ("unload_models", {"model": LONG}),
        ):
            result = await client.call_tool(tool, arguments)
            assert result.is_error
            assert len(text_of(result)) < 5000, (tool, len(text_of(result)))
            assert "y" * 81 not in text_of(result)
        for name in ("y" * 100, LONG):
            result = None
            try:
                result = text_of(await client.call_tool(name, {}))
            except MCPError as error:
                result = str(error)
            assert "y" * 81 not in result
            with pytest.raises(MCPError) as refused:
                await client.get_prompt(name)
            assert "y" * 81 not in str(refused.value)


@pytest.mark.parametrize("given", [None, {}, {"subject": "a cup"}, {"subject": "a cup", "scene": " "}])
async def test_a_prompt_without_its_arguments_says_what_it_needs(connect: Connect, given: dict[str, str] | None):
    async with connect() as client:
        with pytest.raises(MCPError, match=r"layered_poster needs .*scene .What lies behind it") as refused:
            await client.get_prompt("layered_poster", given)
        assert refused.value.error.code == INVALID_PARAMS
        with pytest.raises(MCPError, match=r"no argument 'subjekt'\. Did you mean subject\?") as refused:
            await client.get_prompt("layered_poster", {"subjekt": "a cup"})
        assert refused.value.error.code == INVALID_PARAMS
        assert (await client.get_prompt("layered_poster", {"subject": "a cup", "scene": "a table"})).messages


async def test_a_cancelled_job_has_nothing_left(connect: Connect):
    async with connect() as client:
        started: Any = await client.call_tool(
            "generate_transparent", {"prompt": "steps 500", "output": {"wait_seconds": 1}}
        )
        job_id = started.structured_content["job_id"]
        stopped: Any = await client.call_tool("cancel_job", {"job_id": job_id})
        assert stopped.structured_content["status"] == "cancelling"
        for tool, arguments in (("list_jobs", {}), ("get_job", {"job_ids": [job_id]})):
            said = text_of(await client.call_tool(tool, arguments))
            assert "cancel" in said
            assert " left" not in said.replace("it left no pictures", "")


def test_what_is_quoted_is_short_whatever_it_is():
    assert quoted("cup") == "'cup'"
    assert quoted(7) == "7"
    assert quoted("x" * 81) == f"'{'x' * 80}'... (81 characters)"
    assert quoted(10**5000) == "a number of thousands of digits"
