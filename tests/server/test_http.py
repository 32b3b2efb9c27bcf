"""Streamable HTTP: served to this machine, and to others only with a token."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import anyio
import httpx2
import pytest
from starlette.types import ASGIApp

from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.server.app import create_server, serve_http
from layerdiffuse_mcp.server.http import host_of, http_app, listening, names_of
from layerdiffuse_mcp.server.tokens import Guard, guarding
from layerdiffuse_mcp.settings import Settings
from tests.server.served import connected, served

pytestmark = pytest.mark.anyio

TOKEN = "a-token-for-tests"


@pytest.fixture
def serve(settings: Settings, rehearsal: str) -> Iterator[Callable[[str | None], str]]:
    """Serves on a free port, with a token or without; returns the address."""
    with ExitStack() as stack:

        def start(token: str | None) -> str:
            server = create_server(settings, lambda given: LocalBackend(given, rehearsal))
            return stack.enter_context(served(http_app(server, "127.0.0.1", guarding(token, settings))))

        yield start


async def test_a_client_draws_over_http(serve: Callable[[str | None], str], era: str):
    async with connected(serve(None), era) as client:
        result = await client.call_tool("generate_transparent", {"prompt": "steps 2"})
    assert result.structured_content is not None
    assert result.structured_content["status"] == "done"


async def test_a_job_outlives_the_connection_that_started_it(serve: Callable[[str | None], str], era: str):
    url = serve(None)
    async with connected(url, era) as client:
        handle = await client.call_tool("generate_transparent", {"prompt": "steps 20", "output": {"wait_seconds": 0}})
    assert handle.structured_content is not None
    async with connected(url, era) as client:
        found = await client.call_tool("get_job", {"job_ids": [handle.structured_content["job_id"]]})
    assert found.structured_content is not None
    assert found.structured_content["jobs"][0]["status"] == "done"


async def test_without_the_token_nobody_gets_in(serve: Callable[[str | None], str], era: str):
    url = serve(TOKEN)
    async with httpx2.AsyncClient() as web:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            answer = await web.post(url, json={}, headers=headers)
            assert answer.status_code == 401
    async with connected(url, era, TOKEN) as client:
        assert (await client.list_tools()).tools


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
async def test_a_web_page_of_elsewhere_is_refused(serve: Callable[[str | None], str], headers: dict[str, str]):
    request = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    accepted = {"Accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient() as web:
        answer = await web.post(serve(None), json=request, headers={**accepted, **headers})
    assert answer.status_code in (403, 421)


TRICKS = (
    "localhost:x", "localhost:80@evil", "localhost:99999", "localhost:080", "localhost:", "evil@localhost",
    "localhost@evil.example", "localhost.evil.example", "localhost/", "localhost?", "localhost#", "localhost\\\\@evil",
    "127.0.0.1.evil.example", "evil.example:8000", "::1", "", " ",
)  # fmt: skip


@pytest.mark.parametrize("authority", TRICKS)
def test_an_authority_is_compared_whole(authority: str):
    assert host_of(authority) not in names_of("127.0.0.1")
    assert host_of(authority) not in names_of("0.0.0.0")


@pytest.mark.parametrize("authority", ["localhost", "localhost:8000", "LOCALHOST:80", "127.0.0.1:9", "[::1]:8000"])
def test_this_machine_s_own_names_are_known(authority: str):
    assert host_of(authority) in names_of("127.0.0.1")


async def status_of(app: ASGIApp, **headers: str) -> int:
    """The status of an answer to a request that only a served one gets further with."""
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost:8000") as web:
        return (await web.get("/elsewhere", headers=headers)).status_code


async def probe(url: str, name: str) -> tuple[int, dict[str, object]]:
    async with httpx2.AsyncClient(timeout=30) as web:
        answer = await web.get(url.replace("/mcp", f"/{name}"))
        return answer.status_code, answer.json()


async def test_a_server_whose_worker_does_not_start_is_healthy_and_not_ready(settings: Settings, rehearsal: str):
    server = create_server(settings, lambda given: LocalBackend(given, rehearsal.replace("Engine", "Unloadable")))
    with served(http_app(server, "127.0.0.1", Guard({}))) as url:
        assert await probe(url, "ready") == (200, {"ready": True})
        async with connected(url, "2026-07-28") as client:
            result = await client.call_tool("generate_transparent", {"prompt": "steps 1"})
            assert result.is_error
        with anyio.fail_after(30):
            while (found := await probe(url, "ready"))[0] == 200:  # its process ends a moment later
                await anyio.sleep(0.02)
        assert found == (503, {"ready": False, "reason": "no worker can be started"})
        assert await probe(url, "health") == (200, {"healthy": True})


async def test_without_tokens_metrics_are_for_whoever_reaches_the_server(serve: Callable[[str | None], str]):
    url = serve(None).replace("/mcp", "/metrics")
    async with httpx2.AsyncClient() as web:
        answer = await web.get(url)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'layerdiffuse_workers{phase="stopped"} 1.0' in answer.text


async def test_every_request_is_checked_before_anything_else(settings: Settings):
    app = http_app(create_server(settings), "127.0.0.1", Guard({}))
    assert await status_of(app) == 404
    assert await status_of(app, host="localhost:80@evil") == 421
    assert await status_of(app, origin="http://localhost:3000") == 404
    for origin in ("http://localhost@evil.example", "http://localhost:3000@evil", "http://localhost:x", "null",
                   "http://localhost.evil.example", "file://localhost", "http://localhost/"):  # fmt: skip
        assert await status_of(app, origin=origin) == 403, origin


async def test_a_server_on_every_address_answers_for_its_own_names_and_those_it_is_told(settings: Settings):
    app = http_app(create_server(settings), "0.0.0.0", guarding(TOKEN, settings), ["Pictures.example"])
    token = {"authorization": f"Bearer {TOKEN}"}
    for host in ("localhost:8000", f"{socket.gethostname()}:8000", "pictures.example", "127.0.0.1:8000"):
        assert await status_of(app, host=host, **token) == 404, host
    for host in ("evil.example", "pictures.example.evil"):
        assert await status_of(app, host=host, **token) == 421, host


NOT_LOOPBACK = ("0.0.0.0", "192.168.1.4", "::", "example.org", "0", "", "127.1", "127.0.0.1.evil.example")


@pytest.mark.parametrize("host", NOT_LOOPBACK)
def test_others_are_served_only_with_a_token(host: str, settings: Settings):
    with pytest.raises(InvalidRequest, match="--token"):
        serve_http(settings, host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("token", ["", " " * 20, "fifteen-letters", "sixteen letters!", "sechzehn-buchstäblich"])
def test_a_token_that_guards_nothing_is_refused(host: str, token: str, settings: Settings):
    with pytest.raises(InvalidRequest, match="16 characters or more"):
        serve_http(settings, host=host, token=token)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_that_is_taken_is_refused_with_what_to_do(host: str, settings: Settings):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InvalidRequest, match=rf"'{host}', port {port} \(.+\)\. Give another --port"):
            serve_http(settings, host=host, port=port)


def test_a_host_that_is_none_of_this_machine_s_is_refused(settings: Settings):
    with pytest.raises(InvalidRequest, match="a --host that this machine has"):
        serve_http(settings, host="192.0.2.1", token=TOKEN)


@pytest.mark.parametrize("port", [-1, 65536, 10**9])
def test_a_port_that_is_none_is_refused(port: int, settings: Settings):
    with pytest.raises(InvalidRequest, match="There is no port"):
        serve_http(settings, port=port)


@pytest.mark.parametrize("others", [[], [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]])
def test_an_address_that_this_machine_has_not_is_passed_over_where_the_host_has_others(
    monkeypatch: pytest.MonkeyPatch, others: list[Any]
):
    absent = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [absent, *others])
    if not others:
        with pytest.raises(InvalidRequest, match=r"Nothing can be served on 'localhost', port 0 \("):
            listening("localhost", 0)
        return
    [found] = listening("localhost", 0)
    with found:
        assert found.getsockname()[0] == "127.0.0.1"
