"""What a server on HTTP answers beside MCP, to whoever runs it.

/health     it answers at all: 200
/ready      it takes jobs: 200, or 503 with the reason, while it drains or where no worker can be started
/metrics    numbers for Prometheus (`metrics.py`): to tokens that may read them; without any token to everybody who
            reaches it, which is this machine alone

The first two are answered without a token, and say no more than that. All need a host that the server answers for.
"""

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from layerdiffuse_mcp.server.layer_server import LayerServer
from layerdiffuse_mcp.server.metrics import METRICS_TYPE, Metrics
from layerdiffuse_mcp.server.services import Clients
from layerdiffuse_mcp.server.tokens import Guard

OPEN = frozenset({"/health", "/ready"})
"""Paths that need no token."""
READS_METRICS = "metrics"
"""Scope of a token."""


def add_endpoints(server: LayerServer, tokens: Guard) -> None:
    """Have a server answer them once it is served over HTTP, guarded by these tokens."""
    metrics = Metrics(tokens)
    server.at_end.append(metrics.ended)

    @server.custom_route("/health", methods=["GET"])
    async def health(_: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return JSONResponse({"healthy": True})

    @server.custom_route("/ready", methods=["GET"])
    async def ready(_: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        reason = unready(server.clients)
        return JSONResponse({"ready": False, "reason": reason}, 503) if reason else JSONResponse({"ready": True})

    @server.custom_route("/metrics", methods=["GET"])
    async def told(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        user = request.scope.get("user")
        if isinstance(user, AuthenticatedUser) and READS_METRICS not in user.scopes:
            return JSONResponse({"error": "This token may not read metrics: its entry needs metrics = true."}, 403)
        return Response(metrics.text(server.clients), media_type=METRICS_TYPE)


def unready(clients: Clients) -> str | None:
    """Why no job would be done now; None if there is nothing in the way."""
    dispatcher = next(iter(clients.services.values())).jobs.dispatcher
    if dispatcher.draining:
        return "draining"
    if all(worker.failed for worker in dispatcher.backend.state()):
        return "no worker can be started"
    return None
