"""Streamable HTTP: for clients that cannot start a program, on this machine unless a token guards it.

Requests must name a host that this server answers for, and browsers an origin on this machine, so
that no web page can reach it. With a token every request must carry `Authorization: Bearer TOKEN`.
"""

import ipaddress
import secrets

import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.server.services import Services

PATH = "/mcp"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
SHUTDOWN_SECONDS = 3
"""How long running requests may go on once the server is told to end."""


class TokenGuard:
    """Answers 401 to every request that does not carry the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through or refuse it."""
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not secrets.compare_digest(given, self._expected):
                refusal = JSONResponse(
                    {"error": "Send the header 'Authorization: Bearer TOKEN' with this server's token."},
                    status_code=401,
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def http_app(server: MCPServer[Services], host: str, token: str | None) -> ASGIApp:
    """The ASGI application that serves `server` at `PATH`.

    Raises:
        InvalidRequest: others could reach the address, and no token would stop them.
    """
    if not is_loopback(host) and not token:
        raise InvalidRequest(
            f"{host} can be reached from other machines. Give --token, or serve on 127.0.0.1 (the default)."
        )
    app = server.streamable_http_app(streamable_http_path=PATH, transport_security=_allowed(host), host=host)
    return TokenGuard(app, token) if token else app


def serve(server: MCPServer[Services], host: str, port: int, token: str | None) -> None:
    """Serve until interrupted; raises InvalidRequest as `http_app` does."""
    app = http_app(server, host, token)
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=SHUTDOWN_SECONDS)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _allowed(host: str) -> TransportSecuritySettings:
    """Hosts and origins that a request may name.

    An address that stands for all of them has any number of names; there the token is the guard.
    """
    if host in ("0.0.0.0", "::", ""):
        return TransportSecuritySettings(enable_dns_rebinding_protection=False)
    names = {*LOOPBACK, f"[{host}]" if ":" in host else host}
    return TransportSecuritySettings(
        allowed_hosts=[form for name in names for form in (name, f"{name}:*")],
        allowed_origins=[f"{scheme}://{name}{port}" for name in names for scheme in ("http", "https")
                         for port in ("", ":*")],
    )  # fmt: skip
