"""Build the server and serve it.

    server = create_server(Settings())          # an MCPServer: hand it to the SDK's Client in tests
    serve_stdio(Settings())                     # what `layerdiffuse-mcp` does
    serve_http(Settings(), "127.0.0.1", 8000)   # what `layerdiffuse-mcp --http` does

Nothing heavy is imported until a tool needs it; the worker starts in the background once
the first question has been answered.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.mcpserver import MCPServer
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CompleteRequestParams,
    CompleteResult,
    ListResourcesResult,
    PaginatedRequestParams,
)

from layerdiffuse_mcp import __version__
from layerdiffuse_mcp.backends import Backend
from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.backends.pictures import PictureRoom
from layerdiffuse_mcp.jobs import Jobs
from layerdiffuse_mcp.server.declare import catalogue
from layerdiffuse_mcp.server.prompts import add_prompts
from layerdiffuse_mcp.server.resources import add_resources, completed, page
from layerdiffuse_mcp.server.services import Services
from layerdiffuse_mcp.server.tools import TOOLS
from layerdiffuse_mcp.settings import Settings

NAME = "layerdiffuse"
HANDSHAKE = frozenset({"initialize", "server/discover", "ping"})

INSTRUCTIONS = """\
Draws pictures with real transparency (RGBA PNG files with soft alpha) on this machine, and takes layers apart and \
together. Every call answers with absolute paths, what the alpha holds, and a small preview; the files are the result.

Which tool:
- a subject, icon, sprite, sticker or cut-out without background: generate_transparent (describe the subject alone)
- change such a picture: edit_transparent
- subject and matching scene at once: generate_layers; a scene for a given layer: generate_background_from_foreground, \
generate_foreground_from_background, generate_blended
- take a layer out of a scene: extract_layer (needs the blended picture and the other layer)
- put finished layers together, resize the canvas, export PNG, WebP, PSD or OpenRaster: compose_layers (exact, no model)
- look at the alpha of a picture: inspect_image

Slow calls return status "running" and a job_id: call get_job with it. Same seed and settings, same picture; \
recipe_from draws a picture again with named changes. list_models says what each model can do; the embedded model \
"pocket" draws small emoji-like subjects (128 px) and needs no download. If the text warns that no transparency came \
out, try another seed or method rather than removing a background.
"""


def create_server(
    settings: Settings, open_backend: Callable[[Settings], Backend] = LocalBackend
) -> MCPServer[Services]:
    """The server with all its tools; its queue lives as long as it is served.

    Args:
        settings: everything that can be set.
        open_backend: makes the backend that its jobs run on.
    """

    @asynccontextmanager
    async def lifespan(_: MCPServer[Services]) -> AsyncGenerator[Services]:
        async with PictureRoom() as pictures, Jobs(open_backend(settings), settings) as jobs:
            yield Services(settings, jobs, pictures)

    server = _Server(
        NAME,
        title="LayerDiffuse",
        description="Pictures and layers with real transparency",
        instructions=INSTRUCTIONS,
        version=__version__,
        tools=catalogue(TOOLS),
        lifespan=lifespan,
        log_level="WARNING",
        middleware=[_warm_up],
    )
    add_resources(server)
    add_prompts(server)
    return server


class _Server(MCPServer[Services]):
    """The SDK's server, with resources that come from the queue and completions that know it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._lowlevel_server.add_request_handler("completion/complete", CompleteRequestParams, self._complete)

    async def _handle_list_resources(
        self, ctx: ServerRequestContext[Services], params: PaginatedRequestParams | None
    ) -> ListResourcesResult:
        try:
            return page(ctx.lifespan_context, params.cursor if params else None)
        except ValueError:
            raise MCPError(INVALID_PARAMS, "The cursor is not one that this server gave. Begin without one.") from None

    async def _complete(self, ctx: ServerRequestContext[Services], params: CompleteRequestParams) -> CompleteResult:
        return CompleteResult(completion=await completed(ctx.lifespan_context, params.ref, params.argument))


async def _warm_up(ctx: ServerRequestContext[Services, Any], call_next: CallNext) -> HandlerResult:
    """Start the worker once a client has had its first answer, so that neither waits for the other."""
    result = await call_next(ctx)
    known = ctx.lifespan_context
    if known.settings.warm_up and not known.warmed_up and ctx.method not in HANDSHAKE:
        known.warmed_up = True
        known.jobs.warm_up()
    return result


def serve_stdio(settings: Settings) -> None:
    """Serve one client on standard input and output until it goes."""
    create_server(settings).run("stdio")


def serve_http(settings: Settings, host: str = "127.0.0.1", port: int = 8000, token: str | None = None) -> None:
    """Serve Streamable HTTP until interrupted.

    Raises:
        InvalidRequest: the address is not loopback and there is no token.
    """
    from layerdiffuse_mcp.server import http

    http.serve(create_server(settings), host, port, token)
