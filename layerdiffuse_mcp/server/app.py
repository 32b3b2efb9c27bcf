"""Build the server and serve it.

    server = create_server(Settings())          # an MCPServer: hand it to the SDK's Client in tests
    serve_stdio(Settings())                     # what `layerdiffuse-mcp` does
    serve_http(Settings(), "127.0.0.1", 8000)   # what `layerdiffuse-mcp --http` does

Nothing heavy is imported until a tool needs it; the worker starts in the background once
the first question has been answered.
"""

import sys
import threading
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
from mcp.server.caching import CacheableMethod, CacheHint
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel.helper_types import ReadResourceContents
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.subscriptions import InMemorySubscriptionBus
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    METHOD_NOT_FOUND,
    CallToolResult,
    CompleteRequestParams,
    CompleteResult,
    GetPromptResult,
    InputRequiredResult,
    ListResourcesResult,
    PaginatedRequestParams,
    ResourceTemplate,
)

from layerdiffuse_mcp import __version__
from layerdiffuse_mcp.api.fields import near
from layerdiffuse_mcp.backends.backend import Backend
from layerdiffuse_mcp.backends.chosen import chosen
from layerdiffuse_mcp.backends.pictures import PictureRoom
from layerdiffuse_mcp.hub import leftovers
from layerdiffuse_mcp.jobs.queue import Jobs
from layerdiffuse_mcp.logs import log_to
from layerdiffuse_mcp.outputs import writer
from layerdiffuse_mcp.server import contents, stdio
from layerdiffuse_mcp.server.apps import viewer
from layerdiffuse_mcp.server.icons import SERVER
from layerdiffuse_mcp.server.prompts import add_prompts
from layerdiffuse_mcp.server.resources import add_resources, check_view, completed, page, tell_end, with_its_type
from layerdiffuse_mcp.server.sendable import utf8
from layerdiffuse_mcp.server.services import IMAGES, Services
from layerdiffuse_mcp.server.tools import TOOLS
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import quoted

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


def create_server(settings: Settings, open_backend: Callable[[Settings], Backend] = chosen) -> "LayerServer":
    """The server with all its tools; its queue lives as long as it is served.

    Args:
        settings: everything that can be set.
        open_backend: makes the backend that its jobs run on.
    """

    bus = InMemorySubscriptionBus()

    @asynccontextmanager
    async def lifespan(_: MCPServer[Services]) -> AsyncGenerator[Services]:
        await anyio.to_thread.run_sync(_sweep, settings)
        threading.Thread(target=leftovers.sweep, daemon=True, name="sweep").start()
        async with (
            anyio.create_task_group() as telling,
            PictureRoom() as pictures,
            Jobs(open_backend(settings), settings, pictures=pictures) as jobs,
        ):
            jobs.at_end = lambda job: telling.start_soon(tell_end, bus, job)
            known = Services(settings, jobs, pictures)
            try:
                yield known
            finally:
                known.contents.close()

    server = LayerServer(
        NAME,
        title="LayerDiffuse",
        description="Pictures and layers with real transparency",
        instructions=INSTRUCTIONS,
        version=__version__,
        icons=SERVER,
        cache_hints=dict.fromkeys(UNCHANGING, CacheHint(HOUR, "public")),
        subscriptions=bus,
        tools=[row.tool for row in TOOLS],
        extensions=[viewer()],
        lifespan=lifespan,
        log_level="WARNING",
        middleware=[_in_words, _warm_up],
    )
    add_resources(server)
    add_prompts(server)
    return server


GONE = {
    "generate_blended": 'It is want=["blended"] of generate_background_from_foreground and '
    "generate_foreground_from_background now."
}
"""Tools that there once were, and what to call instead."""


class LayerServer(MCPServer[Services]):
    """The SDK's server, with resources that come from the queue, completions that know it, and errors in words."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._lowlevel_server.add_request_handler("completion/complete", CompleteRequestParams, self._complete)

    async def serve_stdio(self) -> int:
        """Serve one client on standard input and output until it goes; returns the exit status."""
        return await stdio.serve(self._lowlevel_server)

    async def get_prompt(
        self, name: str, arguments: dict[str, Any] | None = None, context: Context[Services, Any] | None = None
    ) -> GetPromptResult | InputRequiredResult:
        """A prompt by its name; an MCPError says which arguments it takes if those given are not right."""
        prompts = {prompt.name: prompt for prompt in await self.list_prompts()}
        if name not in prompts:
            raise MCPError(INVALID_PARAMS, f"There is no prompt {quoted(name)}. {near(name, prompts)}")
        takes = prompts[name].arguments or []
        given = arguments or {}
        if unknown := [argument for argument in given if argument not in {known.name for known in takes}]:
            names = [known.name for known in takes]
            text = f"The prompt {name} has no argument {quoted(unknown[0])}. {near(unknown[0], names)}"
            raise MCPError(INVALID_PARAMS, text)
        if missing := [known for known in takes if known.required and not given.get(known.name, "").strip()]:
            wanted = "; ".join(f"{known.name} ({known.description})" for known in missing)
            raise MCPError(INVALID_PARAMS, f"The prompt {name} needs {wanted}.")
        return await super().get_prompt(name, arguments, context)

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Services, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool by its name; raises ToolError as the SDK's own method does."""
        names = [tool.name for tool in await self.list_tools()]
        if name not in names:
            raise ToolError(f"There is no tool {quoted(name)}. {GONE.get(name) or near(name, names)}")
        return await super().call_tool(name, arguments, context)

    async def _handle_list_resources(
        self, ctx: ServerRequestContext[Services], params: PaginatedRequestParams | None
    ) -> ListResourcesResult:
        try:
            return page(ctx.lifespan_context, params.cursor if params else None)
        except ValueError:
            raise MCPError(INVALID_PARAMS, "The cursor is not one that this server gave. Begin without one.") from None

    async def list_resource_templates(self) -> list[ResourceTemplate]:
        """The templates; that of pictures without a media type, for each picture has its own."""
        templates = await super().list_resource_templates()
        return [
            template.model_copy(update={"mime_type": None}) if template.uri_template.startswith(IMAGES) else template
            for template in templates
        ]

    async def read_resource(
        self, uri: Any, context: Context[Services, Any] | None = None
    ) -> Iterable[ReadResourceContents] | InputRequiredResult:
        check_view(str(uri))
        read = await super().read_resource(uri, context)
        if context is None or isinstance(read, InputRequiredResult):
            return read
        known = context.request_context.lifespan_context
        return [await anyio.to_thread.run_sync(with_its_type, known, str(uri), part) for part in read]

    async def _complete(self, ctx: ServerRequestContext[Services], params: CompleteRequestParams) -> CompleteResult:
        return CompleteResult(completion=await completed(ctx.lifespan_context, params.ref, params.argument))


def _sweep(settings: Settings) -> None:
    """Remove what servers left behind that were killed."""
    writer.sweep(settings.output)
    contents.sweep()


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
    server = create_server(settings)
    log_to(settings.log_file)
    return anyio.run(server.serve_stdio)


def serve_http(
    settings: Settings,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    allowed_hosts: Collection[str] = (),
) -> None:
    """Serve Streamable HTTP until interrupted.

    Raises:
        InvalidRequest: the address is not loopback and there is no token, the token is too short, or there is no
            such port.
    """
    from layerdiffuse_mcp.server import http

    if settings.resume_jobs == "auto":
        settings = settings.model_copy(update={"resume_jobs": True})
    server = create_server(settings)
    log_to(settings.log_file)
    http.serve(server, host, port, token, allowed_hosts)
