"""Serving one client on standard input and output, until it goes or a signal comes.

    status = anyio.run(serve, server)   # a low-level server of the SDK

The SDK's transport reads and writes. Around it stands what it lacks: a message that cannot be
written costs its request an error instead of silencing the session, a line that is no message is answered with an
error, the end of the client is noticed and acted upon whatever else is stuck, and what libraries print never comes
between, before or after messages.
"""

import asyncio
import json
import logging
import math
import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared._stream_protocols import ReadStream, WriteStream
from mcp.shared.message import SessionMessage
from mcp_types import INTERNAL_ERROR, INVALID_REQUEST, PARSE_ERROR, ErrorData, JSONRPCError, JSONRPCResponse
from pydantic import ValidationError

from layerdiffuse_mcp.server.ending import Ending
from layerdiffuse_mcp.wording import valid_text

logger = logging.getLogger(__name__)

GONE = (ConnectionError, anyio.BrokenResourceError, anyio.ClosedResourceError)
"""What writing raises when nobody can read any more."""


async def serve(server: Server[Any]) -> int:
    """Serve until the client is gone; returns the exit status, or ends the process where standard input stays open."""
    ending = Ending()
    loop = asyncio.get_running_loop()
    answers = anyio.wrap_file(standard_output())
    with anyio.CancelScope() as scope:
        ending.at_signals(lambda: loop.call_soon_threadsafe(scope.cancel))
        try:
            async with stdio_server(stdout=answers) as streams:
                await _serve(server, *streams, ending)
        except* GONE:
            ending.now()  # what could not be written stays in buffers that would be written again
    return ending.status


def standard_output() -> TextIO:
    """The way to the client, for messages alone: whatever else this process writes goes to stderr, to its very end.

    The SDK's own claim ends with the session, upon which buffers of libraries are flushed.
    """
    # where a process was started without stderr its number may by now be any file's
    elsewhere = os.open(os.devnull, os.O_WRONLY) if sys.stderr is None else 2
    ours = os.dup(1)
    os.dup2(elsewhere, 1)
    sys.stdout.flush()  # what was printed by now
    # a thread may still write when the session is over: a descriptor of that number must not lead elsewhere by then
    return open(ours, "w", encoding="utf-8", newline="\n", closefd=False)


async def _serve(
    server: Server[Any],
    incoming: ReadStream[SessionMessage | Exception],
    outgoing: WriteStream[SessionMessage],
    ending: Ending,
) -> None:
    # as much as the client sends: its end is to be seen even if nothing of it can be answered
    heard, to_server = anyio.create_memory_object_stream[SessionMessage | Exception](math.inf)
    from_server, answers = anyio.create_memory_object_stream[SessionMessage]()
    gone = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_listen, incoming, heard, from_server.clone(), gone, ending)
        tasks.start_soon(_answer, answers, outgoing)
        try:
            await server.run(to_server, from_server, server.create_initialization_options())
        except Exception:
            logger.exception("the server failed")
            ending.begin(1)
        finally:
            ending.begin()
            if not gone.is_set():
                ending.now()  # a thread still reads standard input, and nothing can interrupt it


async def _listen(
    incoming: ReadStream[SessionMessage | Exception],
    heard: MemoryObjectSendStream[SessionMessage | Exception],
    replies: MemoryObjectSendStream[SessionMessage],
    gone: anyio.Event,
    ending: Ending,
) -> None:
    async with heard, replies, anyio.create_task_group() as replying:
        async for message in incoming:
            if isinstance(message, Exception):
                if reply := refusal(message):
                    replying.start_soon(_reply, replies, reply)  # whoever reads nothing may still go on or leave
                continue
            heard.send_nowait(message)
        gone.set()
        ending.begin()


async def _reply(replies: MemoryObjectSendStream[SessionMessage], reply: SessionMessage) -> None:
    with suppress(*GONE):
        await replies.send(reply)


def refusal(unread: Exception) -> SessionMessage | None:
    """The answer to a line that is no message, by what was wrong with it: an error with the request's id, or with none.

    None where nobody waits for one: an empty line, a notification.
    """
    if not isinstance(unread, ValidationError):
        logger.warning("what the client sent could not be read: %r", unread)
        return None
    found = unread.errors(include_url=False)
    whole: Any = next((one["input"] for one in found if one["type"] in ("json_invalid", "model_type", "missing")), None)
    if found[0]["type"] == "json_invalid":
        if not whole.strip():
            return None
        code, text = PARSE_ERROR, f"This line is no JSON in UTF-8: {found[0]['msg'].removeprefix('Invalid JSON: ')}."
        try:
            whole = json.loads(whole.lstrip("\ufeff"))  # which reads halves of characters, too
        except (ValueError, RecursionError):
            whole = None
    else:
        code, text = INVALID_REQUEST, "This is no message of JSON-RPC 2.0, one to a line: send single requests."
    logger.warning("what the client sent was not understood: %s", text)
    request = cast("dict[str, Any]", whole) if isinstance(whole, dict) and "method" in whole else {}
    number = request.get("id")
    if request and number is None:
        return None
    known = type(number) is int or (isinstance(number, str) and number == valid_text(number))
    error = JSONRPCError(jsonrpc="2.0", id=number if known else None, error=ErrorData(code=code, message=text))
    return SessionMessage(error)


async def _answer(answers: MemoryObjectReceiveStream[SessionMessage], outgoing: WriteStream[SessionMessage]) -> None:
    async with outgoing:
        async for message in answers:
            if sendable := checked(message):
                await outgoing.send(sendable)


def checked(message: SessionMessage) -> SessionMessage | None:
    """The message itself if it can be written as JSON, else an error in an answer's place and nothing in another's."""
    try:
        message.message.model_dump_json(by_alias=True, exclude_unset=True)
        return message
    except Exception:
        logger.exception("a message cannot be written")
    if not isinstance(message.message, JSONRPCResponse | JSONRPCError):
        return None
    text = "The answer to this request cannot be written as JSON; the server's log says why. Other calls work."
    error = ErrorData(code=INTERNAL_ERROR, message=text)
    return SessionMessage(JSONRPCError(jsonrpc="2.0", id=message.message.id, error=error), message.metadata)
