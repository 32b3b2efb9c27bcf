"""The viewer for people without a client that draws apps: the same page, in a browser on this machine.

    serve(answer_for(pictures), announce=print)     # what `layerdiffuse-mcp view PATH...` does

A page of ours (`view/host.*`) frames the viewer as a client would, in a sandbox, and carries its messages here. The
address holds a token in its fragment, which no log sees; it is good once, for a key that the tab keeps and sends with
every request. Only files that were named at the start are shown, there are no tools, and nothing is written. It ends by
Ctrl-C, or `GONE` seconds after the last page was closed.
"""

import base64
import hashlib
import re
import secrets
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import uvicorn
from mcp_types import INVALID_PARAMS, METHOD_NOT_FOUND
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from layerdiffuse_mcp import __version__
from layerdiffuse_mcp.errors import LayerDiffuseError
from layerdiffuse_mcp.server.apps import page
from layerdiffuse_mcp.server.http import LOOPBACK, HostGuard

Message = dict[str, Any]
Answer = Callable[[Message], Awaitable[list[Message]]]
"""What is to be said to the page upon a message of its own."""
PROTOCOL = "2026-01-26"
"""Of MCP Apps."""
FILES = "layerdiffuse://files/"
ADDRESS = "127.0.0.1"
GONE = 30.0
"""Seconds without a page after which the server ends; a reload takes less."""
HEARTBEAT = 10.0
SHUTDOWN_SECONDS = 1
HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}
READABLE = {"PNG": "image/png", "WEBP": "image/webp", "JPEG": "image/jpeg", "GIF": "image/gif", "BMP": "image/bmp"}
"""What browsers read as it is; whatever else we read comes as PNG."""


def result(message: Message, content: Mapping[str, Any]) -> list[Message]:
    """The answer to a request."""
    return [{"jsonrpc": "2.0", "id": message["id"], "result": content}]


def refusal(message: Message, code: int, text: str) -> list[Message]:
    """The answer to a request that cannot be granted."""
    return [{"jsonrpc": "2.0", "id": message["id"], "error": {"code": code, "message": text}}]


def notification(method: str, params: Mapping[str, Any]) -> Message:
    """Something that the page is told."""
    return {"jsonrpc": "2.0", "method": method, "params": params}


def introduction(capabilities: Mapping[str, Any], context: Mapping[str, Any] | None = None) -> Message:
    """What a host says of itself."""
    return {
        "protocolVersion": PROTOCOL,
        "hostInfo": {"name": "layerdiffuse-mcp view", "version": __version__},
        "hostCapabilities": capabilities,
        "hostContext": context or {},
    }


def answer_for(paths: Sequence[Path], max_pixels: int, *, stacked: bool = False) -> Answer:
    """A host that shows these files: each by itself, or `stacked` as layers of one picture, the lowest first.

    Raises:
        ImageError: one of them is no picture that is read.
    """
    images = [_facts(number, path, max_pixels, stacked) for number, path in enumerate(paths)]

    async def answer(message: Message) -> list[Message]:
        match message:
            case {"method": "ui/initialize", "id": _}:
                return result(message, introduction({"serverResources": {}}, {"displayMode": "fullscreen"}))
            case {"method": "ui/notifications/initialized"}:
                return [
                    notification("ui/notifications/tool-input", {"arguments": {}}),
                    notification("ui/notifications/tool-result", {"structuredContent": {"images": images}}),
                ]
            case {"method": "resources/read", "id": _, "params": {"uri": str(uri)}}:
                number = uri.removeprefix(FILES)
                if not (number.isascii() and number.isdigit() and int(number) < len(paths)):
                    return refusal(message, INVALID_PARAMS, "Only the files that were named are shown.")
                try:
                    content = await anyio.to_thread.run_sync(_content, paths[int(number)], max_pixels)
                except LayerDiffuseError as error:
                    return refusal(message, INVALID_PARAMS, str(error))
                return result(message, {"contents": [{"uri": uri, **content}]})
            case {"id": _}:
                return refusal(message, METHOD_NOT_FOUND, "Pictures are only shown here.")
            case _:
                return []

    return answer


def _facts(number: int, path: Path, max_pixels: int, stacked: bool) -> Message:
    """A picture as a tool's result names it; its subject is the prompt inside, else its name."""
    from layerdiffuse_mcp.images.png import read_recipe
    from layerdiffuse_mcp.images.read import picture_size
    from layerdiffuse_mcp.wording import printable

    width, height = picture_size(path, max_pixels)
    request = (read_recipe(path, max_pixels) or {}).get("request")
    prompt = request.get("prompt") if isinstance(request, dict) else None
    named = prompt if isinstance(prompt, str) and prompt else printable(path.name)
    name = {"role": f"{number + 1}. {printable(path.stem)}"} if stacked else {"subject": named, "role": "picture"}
    return {"path": printable(path), "uri": f"{FILES}{number}", "width": width, "height": height, **name}


def _content(path: Path, max_pixels: int) -> Message:
    """A file's bytes as a resource holds them."""
    from layerdiffuse_mcp.images.png import png_bytes
    from layerdiffuse_mcp.images.read import opened, opened_file, read_picture

    with opened_file(path) as file:
        with opened(file, max_pixels) as picture:
            kind = READABLE.get(str(picture.format))
        file.seek(0)
        data = file.read() if kind else png_bytes(read_picture(file, max_pixels).rgba)
    return {"mimeType": kind or "image/png", "blob": base64.b64encode(data).decode()}


class Viewing:
    """The pages and their messages, over HTTP, and who looks at them."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._key = secrets.token_urlsafe(32)
        self.token: str | None = secrets.token_urlsafe(32)
        self.pages = 0
        self.changed = anyio.Event()

    def app(self) -> ASGIApp:
        """The ASGI application."""
        routes = [
            Route("/", self._host),
            Route("/view.html", self._view),
            Route("/key", self._key_once, methods=["POST"]),
            Route("/message", self._message, methods=["POST"]),
            Route("/present", self._present, methods=["POST"]),
        ]
        return HostGuard(Starlette(routes=routes), LOOPBACK)

    async def closed(self) -> None:
        """Return once a page was open and none has been for `GONE` seconds."""
        seen = False
        while True:
            changed = self.changed = anyio.Event()
            seen = seen or self.pages > 0
            with anyio.move_on_after(GONE if seen and not self.pages else None) as waiting:
                await changed.wait()
            if waiting.cancelled_caught:
                return

    async def _host(self, _: Request) -> Response:
        return _page("host.html", "connect-src 'self'; frame-src 'self'; frame-ancestors 'none'")

    async def _view(self, _: Request) -> Response:
        return _page("view.html", "frame-ancestors 'self'")

    async def _key_once(self, request: Request) -> Response:
        if self.token is None or not _carries(request, self.token):
            return PlainTextResponse("This address was opened already.", 403, HEADERS)
        self.token = None
        return PlainTextResponse(self._key, headers=HEADERS)

    async def _message(self, request: Request) -> Response:
        if not _carries(request, self._key):
            return PlainTextResponse("Not for this page.", 403, HEADERS)
        try:
            said = await self._answer(await request.json())
        except ValueError:
            return PlainTextResponse("No message.", 400, HEADERS)
        return JSONResponse(said, headers=HEADERS)

    async def _present(self, request: Request) -> Response:
        """Stays open for as long as the page does."""
        if not _carries(request, self._key):
            return PlainTextResponse("Not for this page.", 403, HEADERS)
        return StreamingResponse(self.beats(), headers=HEADERS)

    async def beats(self) -> AsyncGenerator[str]:
        """What an open page gets, for as long as it takes it."""
        self.pages += 1
        self.changed.set()
        try:
            while True:
                yield "."
                await anyio.sleep(HEARTBEAT)
        finally:
            self.pages -= 1
            self.changed.set()


def serve(answer: Answer, announce: Callable[[str], object], port: int = 0) -> None:
    """Serve on loopback until no page is open any more.

    Args:
        answer: what is said to the page.
        announce: is told the address to open.
        port: 0 for any that is free.

    Raises:
        LayerDiffuseError: the port is taken.
        KeyboardInterrupt: a signal came.
    """
    viewing = Viewing(answer)
    config = uvicorn.Config(viewing.app(), log_level="critical", timeout_graceful_shutdown=SHUTDOWN_SECONDS)
    running = _Server(config)

    async def end_when_closed() -> None:
        await viewing.closed()
        running.should_exit = True

    async def work() -> None:
        with socket.socket() as listening:
            try:
                listening.bind((ADDRESS, port))
            except (OSError, OverflowError) as error:
                raise LayerDiffuseError(f"Port {port} of {ADDRESS} cannot be used ({error}). Give another.") from error
            async with anyio.create_task_group() as group:
                group.start_soon(end_when_closed)
                listening.listen()
                announce(f"http://{ADDRESS}:{listening.getsockname()[1]}/#{viewing.token}")
                await running.serve(sockets=[listening])
                group.cancel_scope.cancel()

    anyio.run(work)
    if running.interrupted:
        raise KeyboardInterrupt


class _Server(uvicorn.Server):
    """uvicorn's server, which remembers that a signal ended it: asyncio may forget it, whatever ends first."""

    interrupted = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """What SIGINT and SIGTERM do."""
        self.interrupted = True
        super().handle_exit(sig, frame)


def _carries(request: Request, secret: str) -> bool:
    given = request.headers.get("authorization", "").encode()
    return secrets.compare_digest(given, f"Bearer {secret}".encode())


def _page(name: str, more: str) -> Response:
    """A page of ours; only what is inside it runs."""
    html = page(name)
    inside = {kind: re.search(rf"<{kind}[^>]*>(.*?)</{kind}>", html, re.DOTALL) for kind in ("script", "style")}
    hashes = {kind: _hash(found[1]) for kind, found in inside.items() if found}
    policy = f"default-src 'none'; base-uri 'none'; form-action 'none'; {more}; " + "; ".join(
        f"{kind}-src '{digest}'" for kind, digest in hashes.items()
    )
    return HTMLResponse(html, headers={**HEADERS, "Content-Security-Policy": policy})


def _hash(inside: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
