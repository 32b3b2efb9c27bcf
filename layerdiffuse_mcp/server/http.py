"""Streamable HTTP: for clients that cannot start a program, on this machine unless a token guards it.

Requests must name a host that this server answers for, and browsers an origin on one, so that no
web page can reach it. With a token every request must carry `Authorization: Bearer TOKEN`.
"""

import ipaddress
import re
import secrets
import socket
import sys
from collections.abc import Collection
from types import FrameType

import httpx2
import psutil
import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp.server.transport_security import TransportSecuritySettings
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from layerdiffuse_mcp.errors import InvalidRequest, quoted
from layerdiffuse_mcp.server.ending import Ending
from layerdiffuse_mcp.server.services import Services

PATH = "/mcp"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
EVERYWHERE = frozenset({"0.0.0.0", "::", "0", ""})
"""Addresses that stand for all of a machine's."""
TOKEN = re.compile(r"[!-~]{16,}")
"""What a header can carry and nobody guesses."""
SHUTDOWN_SECONDS = 1
"""How long running requests may go on once the server is told to end."""


class HostGuard:
    """Answers 421 to requests for another host and 403 to those of pages from elsewhere."""

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through or refuse it."""
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            hosts, origins = headers.getlist("host"), headers.getlist("origin")
            if len(hosts) != 1 or host_of(hosts[0]) not in self._names:
                await _refuse(421, "This server does not answer for that host; --allowed-host adds one.")(
                    scope, receive, send
                )
                return
            if any(_origin_host(origin) not in self._names for origin in origins):
                await _refuse(403, "Pages of that origin may not use this server; --allowed-host adds a host.")(
                    scope, receive, send
                )
                return
        await self._app(scope, receive, send)


class TokenGuard:
    """Answers 401 to every request that does not carry the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through or refuse it."""
        if scope["type"] in ("http", "websocket"):
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not secrets.compare_digest(given, self._expected):
                refusal = _refuse(401, "Send the header 'Authorization: Bearer TOKEN' with this server's token.")
                refusal.headers["WWW-Authenticate"] = "Bearer"
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)


def http_app(server: MCPServer[Services], host: str, token: str | None, allowed_hosts: Collection[str] = ()) -> ASGIApp:
    """The ASGI application that serves `server` at `PATH`.

    Args:
        server: what is served.
        host: the address that it will be served on.
        token: what every request has to carry.
        allowed_hosts: names that requests may have for this machine, besides its own.

    Raises:
        InvalidRequest: others could reach the address and no token would stop them, or the token is too short.
    """
    if token is not None and not TOKEN.fullmatch(token):
        raise InvalidRequest("A token has 16 characters or more, of letters, digits and signs, without spaces.")
    if token is None and not is_loopback(host):
        raise InvalidRequest(
            f"{quoted(host)} can be reached from other machines. Give --token, or serve on 127.0.0.1 (the default)."
        )
    app: ASGIApp = server.streamable_http_app(
        streamable_http_path=PATH,
        host=host,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),  # it compares beginnings
    )
    if token is not None:
        app = TokenGuard(app, token)
    return HostGuard(app, {*names_of(host), *allowed_hosts})


def serve(
    server: MCPServer[Services], host: str, port: int, token: str | None, allowed_hosts: Collection[str] = ()
) -> None:
    """Serve until interrupted; raises InvalidRequest as `http_app` does."""
    if not 0 <= port <= 65535:
        raise InvalidRequest(f"There is no port {port}: give one from 1 to 65535, or 0 for any that is free.")
    app = http_app(server, host, token, allowed_hosts)
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=SHUTDOWN_SECONDS)
    running = _Server(config)
    running.run()
    if not running.started:  # the address is taken, or none of this machine's; uvicorn has said so
        sys.exit(1)


class _Server(uvicorn.Server):
    """uvicorn's server, ended in time whatever its requests do; at the second signal at once."""

    ending = Ending()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """What SIGINT and SIGTERM do."""
        self.ending.signalled(sig)
        super().handle_exit(sig, frame)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host == "localhost"


def names_of(host: str) -> set[str]:
    """The names that a request may have for a server on this address; for one on all of them, those of this machine."""
    if host not in EVERYWHERE:
        return {*LOOPBACK, host.removeprefix("[").removesuffix("]")}
    own = socket.gethostname()
    addresses = {entry.address for entries in psutil.net_if_addrs().values() for entry in entries
                 if entry.family in (socket.AF_INET, socket.AF_INET6)}  # fmt: skip
    return {*LOOPBACK, own, f"{own}.local", *(address.partition("%")[0] for address in addresses)}


def host_of(authority: str) -> str | None:
    """The host of `host` or `host:port`, in lower case; None where there is anything else, such as a user or a path."""
    try:
        url = httpx2.URL(f"http://{authority}")
    except (httpx2.InvalidURL, ValueError):
        return None
    netloc = url.netloc.decode()
    if authority.lower() not in (netloc, f"{netloc}:80") or (url.port or 0) > 65535:
        return None
    return url.host


def _origin_host(origin: str) -> str | None:
    scheme, separator, authority = origin.partition("://")
    return host_of(authority) if separator and scheme.lower() in ("http", "https") else None


def _refuse(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status_code=status)
