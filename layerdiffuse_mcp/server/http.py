"""Streamable HTTP: for clients that cannot start a program, on this machine unless a token guards it.

Requests must name a host that this server answers for, and browsers an origin on one, so that no
web page can reach it. Where there are tokens (`tokens.py`) every request but those of probes must carry one of them, as
`Authorization: Bearer TOKEN`; a session of MCP is for the token that opened it alone.

SIGTERM drains the server: it goes on answering, takes no new jobs, and ends when those that run have ended or their
time is over, and whoever waited has its answer. SIGINT gives them none; a second signal ends the process at once.
"""

import errno
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Callable, Collection
from socket import AI_PASSIVE
from types import FrameType

import anyio
import httpx2
import psutil
import uvicorn
from mcp.server.auth.middleware.auth_context import AuthContextMiddleware
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.transport_security import TransportSecuritySettings
from sse_starlette.sse import AppStatus
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.server.ending import GRACE, Ending
from layerdiffuse_mcp.server.endpoints import OPEN, READS_METRICS, add_endpoints
from layerdiffuse_mcp.server.layer_server import LayerServer
from layerdiffuse_mcp.server.tokens import Guard, name_of
from layerdiffuse_mcp.settings import variable
from layerdiffuse_mcp.wording import quoted

PATH = "/mcp"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
EVERYWHERE = frozenset({"0.0.0.0", "::", "0", ""})
"""Addresses that stand for all of a machine's."""
SHUTDOWN_SECONDS = 1
"""How long answers may take once all jobs have ended, and other requests after them."""
ABSENT = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
"""Of an address that this machine does not have: where there is no IPv6, `localhost` may stand for one all the same."""
ANSWERED = 0.02
"""Seconds between two looks whether all are."""

logger = logging.getLogger(__name__)


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
    """Answers 401 to every request that does not carry one of the tokens; of others it notes whose that is.

    Requests under way whose token is no longer one are ended at the next request of anybody.
    """

    def __init__(self, app: ASGIApp, tokens: Guard) -> None:
        self._app = app
        self._tokens = tokens
        self._open: dict[anyio.CancelScope, str] = {}
        """The token's hash of each request under way."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through or refuse it."""
        if scope["type"] in ("http", "websocket") and scope["path"] not in OPEN:
            await self._tokens.look()
            self._end_removed()
            given = Headers(scope=scope).getlist("authorization")
            scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
            name = name_of(self._tokens, token) if scheme.lower() == "bearer" else None
            if name is None:
                refusal = _refuse(401, "Send the header 'Authorization: Bearer TOKEN' with a token of this server.")
                refusal.headers["WWW-Authenticate"] = "Bearer"
                await refusal(scope, receive, send)
                return
            known = self._tokens[name]
            scopes = [READS_METRICS] if known.metrics else []
            scope["user"] = AuthenticatedUser(AccessToken(token="", client_id=name, scopes=scopes))
            with anyio.CancelScope() as under_way:
                self._open[under_way] = known.sha256
                try:
                    await self._app(scope, receive, send)
                finally:
                    del self._open[under_way]
            return
        await self._app(scope, receive, send)

    def _end_removed(self) -> None:
        left = {token.sha256 for token in self._tokens.values()}
        for under_way, digest in self._open.items():
            if digest not in left:
                under_way.cancel()


class Answering:
    """Counts the calls that wait for their answer: `under_way`. Streams that clients listen on are none."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through."""
        is_call = scope["type"] == "http" and scope["method"] == "POST"
        self.under_way += is_call
        try:
            await self._app(scope, receive, send)
        finally:
            self.under_way -= is_call


def http_app(server: LayerServer, host: str, tokens: Guard, allowed_hosts: Collection[str] = ()) -> ASGIApp:
    """The ASGI application that serves `server` at `PATH`.

    Args:
        server: what is served.
        host: the address that it will be served on.
        tokens: one of which every request has to carry, if there are any.
        allowed_hosts: names that requests may have for this machine, besides its own.

    Raises:
        InvalidRequest: others could reach the address and no token would stop them.
    """
    if not tokens and not is_loopback(host):
        raise InvalidRequest(
            f"{quoted(host)} can be reached from other machines. Give --token or {variable('tokens_file')}, or serve "
            "on 127.0.0.1 (the default)."
        )
    add_endpoints(server, tokens)
    app: ASGIApp = AuthContextMiddleware(
        server.streamable_http_app(
            streamable_http_path=PATH,
            host=host,
            transport_security=TransportSecuritySettings(
                enable_dns_rebinding_protection=False  # it compares beginnings
            ),
        )
    )
    if tokens:
        app = TokenGuard(app, tokens)
    return HostGuard(app, {*names_of(host), *allowed_hosts})


def serve(
    server: LayerServer,
    host: str,
    port: int,
    tokens: Guard,
    allowed_hosts: Collection[str] = (),
    drain_seconds: float = 0,
    announce: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve until a signal comes; `drain_seconds` are what running jobs get then. `announce` is told the address.

    Raises:
        InvalidRequest: as `http_app` does, or the address is taken or none of this machine's.
    """
    if not 0 <= port <= 65535:
        raise InvalidRequest(f"There is no port {port}: give one from 1 to 65535, or 0 for any that is free.")
    AppStatus.disable_automatic_graceful_drain()  # which ends every stream at the signal, before its answer
    app = Answering(http_app(server, host, tokens, allowed_hosts))
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=SHUTDOWN_SECONDS)
    running = _Server(config, server, app, drain_seconds)
    sockets = listening(host, port)
    announce(str(httpx2.URL(scheme="http", host=host or "localhost", port=sockets[0].getsockname()[1], path=PATH)))
    running.run(sockets)
    if not running.started:  # uvicorn has said why
        sys.exit(1)


def listening(host: str, port: int) -> list[socket.socket]:
    """A socket on each address of this machine that the host stands for, all on one port; raises InvalidRequest."""
    name = host.removeprefix("[").removesuffix("]")
    found: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, *_, address in socket.getaddrinfo(name or None, port, type=socket.SOCK_STREAM, flags=AI_PASSIVE):
            free = found[0].getsockname()[1] if found else port
            try:
                found.append(socket.create_server((address[0], free, *address[2:]), family=family))
            except OSError as error:
                if error.errno not in ABSENT:
                    raise
                absent = error
        if absent and not found:
            raise absent
    except OSError as error:
        for opened in found:
            opened.close()
        raise InvalidRequest(
            f"Nothing can be served on {quoted(host)}, port {port} ({error.strerror or error}). Give another --port, "
            "0 for any that is free, or a --host that this machine has."
        ) from error
    return found


class _Server(uvicorn.Server):
    """uvicorn's server, drained and then ended in time whatever its requests do; at the second signal at once."""

    def __init__(self, config: uvicorn.Config, server: LayerServer, calls: Answering, drain_seconds: float) -> None:
        super().__init__(config)
        self._served = server
        self._calls = calls
        self._drain_seconds = drain_seconds
        self._ending = Ending()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """What SIGINT and SIGTERM do."""
        if sig != signal.SIGTERM:
            self._drain_seconds = 0
        self._ending.signalled(sig, self._drain_seconds + 2 * SHUTDOWN_SECONDS + GRACE)
        super().handle_exit(sig, frame)

    async def main_loop(self) -> None:
        """Serve until a signal comes, then drain; requests are answered all the while."""
        await super().main_loop()
        running = sum(len(known.jobs.running) for known in self._served.clients.services.values())
        if running and self._drain_seconds:
            logger.warning("%s running, with %g s to end; another signal ends all", running, self._drain_seconds)
        await self._served.clients.drain(self._drain_seconds)
        with anyio.move_on_after(SHUTDOWN_SECONDS):
            while self._calls.under_way:
                await anyio.sleep(ANSWERED)
        AppStatus.should_exit = True  # the streams that are left end


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
