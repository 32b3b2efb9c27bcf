"""Build the server and serve it.

    server = create_server(Settings())          # an MCPServer: hand it to the SDK's Client in tests
    serve_stdio(Settings())                     # what `layerdiffuse-mcp` does
    serve_http(Settings(), "127.0.0.1", 8000)   # what `layerdiffuse-mcp --http` does

Nothing heavy is imported until a tool needs it; the worker starts in the background once
the first question has been answered.
"""

import sys
import threading
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus
from mcp.server.caching import CacheableMethod, CacheHint
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    METHOD_NOT_FOUND,
)

from layerdiffuse_mcp import __version__
from layerdiffuse_mcp.backends.backend import Backend
from layerdiffuse_mcp.backends.chosen import chosen
from layerdiffuse_mcp.backends.pictures import Corner, PictureRoom
from layerdiffuse_mcp.errors import AccessDenied
from layerdiffuse_mcp.hub import leftovers
from layerdiffuse_mcp.jobs.dispatcher import Dispatcher
from layerdiffuse_mcp.jobs.queue import Jobs
from layerdiffuse_mcp.logs import log_to, log_to_stderr
from layerdiffuse_mcp.outputs import writer
from layerdiffuse_mcp.server import contents
from layerdiffuse_mcp.server.apps import viewer
from layerdiffuse_mcp.server.icons import SERVER
from layerdiffuse_mcp.server.layer_server import LayerServer
from layerdiffuse_mcp.server.prompts import add_prompts
from layerdiffuse_mcp.server.resources import add_resources
from layerdiffuse_mcp.server.sendable import utf8
from layerdiffuse_mcp.server.services import Clients, Services
from layerdiffuse_mcp.server.tools import TOOLS
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import quoted

if TYPE_CHECKING:
    from layerdiffuse_mcp.server.tokens import Guard, Token

NAME = "layerdiffuse"
HANDSHAKE = frozenset({"initialize", "server/discover", "ping"})
UNCHANGING: tuple[CacheableMethod, ...] = ("tools/list", "prompts/list", "resources/templates/list", "server/discover")
"""Answers that stay the same as long as the program does."""
HOUR = 3_600_000
"""Milliseconds."""
LONGEST_NAME = 5000
"""Characters of a method, name or URI that are looked at."""

INSTRUCTIONS = """\
Draws pictures with real transparency (RGBA PNG files with soft alpha) on this machine, and takes layers apart and \
together. Every call answers with absolute paths, what the alpha holds, and a small preview; the files are the result.

Which tool:
- a subject, icon, sprite, sticker or cut-out without background: generate_transparent (describe the subject alone)
- change such a picture: edit_transparent; draw it again exactly or with named changes: redraw_image
- subject and matching scene at once: generate_layers; a scene for a given layer: generate_background_from_foreground, \
generate_foreground_from_background (want=["blended"]: only the finished picture, both layers together)
- take a layer out of a finished picture: extract_layer (needs the other layer)
- put finished layers together, resize the canvas, export PNG, WebP, PSD or OpenRaster: compose_layers (exact, no model)
- look at the alpha of a picture: inspect_image; one that was made before, by its prompt or day: find_images

Slow calls return status "running" and a job_id: call get_job with it. Same seed and settings, same picture. Rare \
settings stand in options, files and waiting in output. Each picture has a verdict (good, doubtful, failed) and its \
reason: hand none on without a look that is not good. list_models says what each model can do; the embedded model \
"pocket" draws small emoji-like subjects (128 px) and needs no download. If no transparency came out, try another seed \
or method rather than removing a background.
"""


def create_server(
    settings: Settings,
    open_backend: Callable[[Settings], Backend] = chosen,
    clients: Mapping[str, Settings] | None = None,
) -> LayerServer:
    """The server with all its tools; its queues live as long as it is served.

    Args:
        settings: everything that can be set.
        open_backend: makes the backend that its jobs run on.
        clients: the settings of each client that sees its own alone, by its name; left out, all clients are one.
    """

    @asynccontextmanager
    async def lifespan(served: LayerServer) -> AsyncGenerator[Clients]:
        await anyio.to_thread.run_sync(contents.sweep)
        threading.Thread(target=leftovers.sweep, daemon=True, name="sweep").start()
        async with AsyncExitStack() as stack:
            telling = await stack.enter_async_context(anyio.create_task_group())
            pictures = await stack.enter_async_context(PictureRoom())
            dispatcher = await stack.enter_async_context(Dispatcher(open_backend(settings), settings))
            matting, over = anyio.Lock(), anyio.Event()
            serving = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(over.set)

            async def serve(name: str, one: Settings, *, task_status: TaskStatus[Services]) -> None:
                await anyio.to_thread.run_sync(writer.sweep, one.output)
                room = Corner(pictures) if clients else pictures
                with closing(contents.Contents()) as given:  # until the next server has what waiting jobs start from
                    async with Jobs(dispatcher, one, pictures=room) as jobs:
                        known = Services(one, jobs, room, name, given, matting)
                        jobs.at_end = lambda job: served.job_ended(job, telling, known)
                        task_status.started(known)
                        await over.wait()

            served.clients = Clients(open=partial(serving.start, serve))
            await served.clients.follow(clients or {"": settings})
            yield served.clients

    server = LayerServer(
        NAME,
        title="LayerDiffuse",
        description="Pictures and layers with real transparency",
        instructions=INSTRUCTIONS,
        version=__version__,
        icons=SERVER,
        cache_hints=dict.fromkeys(UNCHANGING, CacheHint(HOUR, "public")),
        subscriptions=False,  # each client has its own
        tools=[row.tool for row in TOOLS],
        extensions=[viewer()],
        lifespan=lifespan,
        log_level="WARNING",
        middleware=[_in_words, _own, _warm_up],
    )
    add_resources(server)
    add_prompts(server)
    return server


async def _in_words(ctx: ServerRequestContext[Services, Any], call_next: CallNext) -> HandlerResult:
    """Let nothing in that would be repeated at length, and nothing out that is not UTF-8."""
    for name in ("name", "uri"):  # the SDK's own errors repeat them
        if len(given := str((ctx.params or {}).get(name, ""))) > LONGEST_NAME:
            raise MCPError(INVALID_PARAMS, f"{name}: {quoted(given)} is too long; at most {LONGEST_NAME} are taken.")
    if len(ctx.method) > LONGEST_NAME:
        raise MCPError(METHOD_NOT_FOUND, f"There is no method {quoted(ctx.method)}.")
    try:
        return utf8(await call_next(ctx))
    except MCPError as error:
        raise MCPError.from_error_data(utf8(error.error)) from error


async def _own(ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
    """Have a client's own services at hand, and no others: whatever answers finds them in its context."""
    try:
        own = ctx.lifespan_context.own(ctx.request)
    except AccessDenied as error:
        raise MCPError(INVALID_REQUEST, str(error)) from error
    return await call_next(replace(ctx, lifespan_context=own))


async def _warm_up(ctx: ServerRequestContext[Services, Any], call_next: CallNext) -> HandlerResult:
    """Start the worker once a client has had its first answer, so that neither waits for the other."""
    result = await call_next(ctx)
    known = ctx.lifespan_context
    if known.settings.warm_up and not known.warmed_up and ctx.method not in HANDSHAKE:
        known.warmed_up = True
        known.jobs.warm_up()
    return result


def serve_stdio(settings: Settings) -> int:
    """Serve one client on standard input and output until it goes; returns the exit status."""
    if settings.share_workers == "auto":
        settings = settings.model_copy(update={"share_workers": sys.platform != "win32"})
    log_to_stderr()
    server = create_server(settings)
    log_to(settings.log_file)
    return anyio.run(server.serve_stdio)


def create_server_for(
    tokens: "Guard", settings: Settings, open_backend: Callable[[Settings], Backend] = chosen
) -> LayerServer:
    """The server as it is served over HTTP: to holders of tokens with names to each their own."""
    from layerdiffuse_mcp.server.tokens import own_settings

    if settings.resume_jobs == "auto":
        settings = settings.model_copy(update={"resume_jobs": True})

    def own(now: "Mapping[str, Token]") -> dict[str, Settings]:
        return {name: own_settings(name, token, settings) for name, token in now.items() if name}

    async def admit(now: "Mapping[str, Token]") -> None:
        await server.clients.follow(own(now))

    clients = own(tokens)
    shared = settings.model_copy(update={"previews": False}) if clients else settings  # one may show several's drawings
    server = create_server(shared, open_backend, clients)
    tokens.admit = admit
    return server


def serve_http(
    settings: Settings,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    allowed_hosts: Collection[str] = (),
    announce: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve Streamable HTTP until interrupted; `announce` is told the address.

    Raises:
        InvalidRequest: the address is not loopback and there is no token, a token or the file of tokens cannot be
            used, or the address cannot be.
    """
    from layerdiffuse_mcp.server import http
    from layerdiffuse_mcp.server.tokens import guarding

    log_to_stderr()
    tokens = guarding(token, settings)
    server = create_server_for(tokens, settings)
    log_to(settings.log_file)
    http.serve(server, host, port, tokens, allowed_hosts, settings.drain_seconds, announce)
