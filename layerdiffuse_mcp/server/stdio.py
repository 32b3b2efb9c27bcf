"""Serving one client on standard input and output, until it goes or a signal comes.

    status = anyio.run(serve, server)   # a low-level server of the SDK

The SDK's transport reads and writes. Around it stands what it lacks: a message that cannot be
written costs its request an error instead of silencing the session, and the end of the client
is noticed and acted upon whatever else is stuck.
"""

import asyncio
import logging
import math
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared._stream_protocols import ReadStream, WriteStream
from mcp.shared.message import SessionMessage
from mcp_types import INTERNAL_ERROR, ErrorData, JSONRPCError, JSONRPCResponse

from layerdiffuse_mcp.server.ending import Ending

logger = logging.getLogger(__name__)

GONE = (ConnectionError, anyio.BrokenResourceError, anyio.ClosedResourceError)
"""What writing raises when nobody can read any more."""


async def serve(server: Server[Any]) -> int:
    """Serve until the client is gone; returns the exit status, or ends the process where standard input stays open."""
    ending = Ending()
    loop = asyncio.get_running_loop()
    with anyio.CancelScope() as scope:
        ending.at_signals(lambda: loop.call_soon_threadsafe(scope.cancel))
        try:
            async with stdio_server() as streams:
                await _serve(server, *streams, ending)
        except* GONE:
            ending.now()  # what could not be written stays in buffers that would be written again
    return ending.status


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
        tasks.start_soon(_listen, incoming, heard, gone, ending)
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
    gone: anyio.Event,
    ending: Ending,
) -> None:
    async with heard:
        async for message in incoming:
            heard.send_nowait(message)
        gone.set()
        ending.begin()


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
