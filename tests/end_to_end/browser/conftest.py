"""A host of MCP Apps in a real browser: frames the page as clients do, and carries its messages to the server."""

import base64
import hashlib
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import TextResourceContents
from playwright.async_api import Browser, Frame, FrameLocator, Page, async_playwright

from layerdiffuse_mcp.server.app import create_server
from layerdiffuse_mcp.server.apps import VIEW
from layerdiffuse_mcp.settings import Settings

FRAMING = """
<!doctype html><html lang="en"><title>A host</title>
<style>body { margin: 0 } iframe { width: 100%; border: 0; height: 900px }</style>
<iframe title="View" sandbox="allow-scripts"></iframe>
<script>
  const frame = document.querySelector("iframe");
  const tell = (message) => frame.contentWindow.postMessage(message, "*");
  window.addEventListener("message", async ({ source, data }) => {
    if (source !== frame.contentWindow) return;
    if (data.method === "ui/notifications/size-changed") frame.style.height = `${data.params.height}px`;
    else for (const message of await ask(data)) tell(message);
  });
</script>
"""


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Debian's Chromium."""
    program = shutil.which("chromium")
    assert program, "these tests need Chromium: `make test-all` installs it, or apt-get install chromium"
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        await opened.close()


@pytest.fixture(scope="module")
async def server(folder: Path) -> AsyncIterator[Client]:
    """A client on a server with the pocket model, in memory."""
    settings = Settings(output_dir=folder / "out", read_dirs=(folder,), models_dir=folder / "models", model="pocket")
    async with Client(create_server(settings)) as client:
        yield client


class Host:
    """A client with somebody at it, who looks at one page; `calls` are those that the page has made."""

    def __init__(self, page: Page, client: Client, theme: str) -> None:
        self.page, self.client, self.theme = page, client, theme
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.context: list[str] = []
        self.errors: list[str] = []
        self.first: tuple[Mapping[str, Any], Mapping[str, Any]] = ({}, {})
        page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    async def open(self, arguments: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Frame the page under the strictest policy, and show it a result."""
        self.first = (arguments, result)
        [read] = (await self.client.read_resource(VIEW)).contents
        assert isinstance(read, TextResourceContents)
        await self.page.expose_function("ask", self._answer)
        await self.page.set_content(FRAMING)
        await self.page.eval_on_selector("iframe", "(frame, html) => { frame.srcdoc = html }", strict(read.text))

    @property
    def view(self) -> FrameLocator:
        """What the frame holds."""
        return self.page.frame_locator("iframe")

    @property
    def frame(self) -> Frame:
        """The frame itself."""
        return self.page.frames[1]

    async def place(self) -> tuple[float, float, float]:
        """Where the fitted picture lies on the stage: left, top and scale, in CSS pixels."""
        return await self.frame.evaluate(
            """() => {
                const [width, height] = document.querySelector("#facts").textContent.split(/\\D+/).map(Number);
                const scale = parseInt(document.querySelector("#zoom").value) / 100;
                const { clientWidth, clientHeight } = document.querySelector("#stage");
                return [(clientWidth - width * scale) / 2, (clientHeight - height * scale) / 2, scale];
            }"""
        )

    async def pixel(self, x: int, y: int) -> list[int]:
        """Colour that the canvas has where a pixel of the fitted picture lies."""
        left, top, scale = await self.place()
        return await self.frame.evaluate(
            """([x, y]) => {
                const canvas = document.querySelector("#canvas"), ratio = canvas.width / canvas.clientWidth;
                return [...canvas.getContext("2d").getImageData(x * ratio, y * ratio, 1, 1).data];
            }""",
            [left + (x + 0.5) * scale, top + (y + 0.5) * scale],
        )

    async def _answer(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        respond = RESPONSES.get(message["method"])
        if respond is None:
            return []
        try:
            content = await respond(self, message.get("params", {}))
        except MCPError as error:
            return [{"jsonrpc": "2.0", "id": message["id"], "error": {"code": error.code, "message": str(error)}}]
        if "id" not in message:
            return content
        return [{"jsonrpc": "2.0", "id": message["id"], "result": content}]

    async def _initialize(self, _: dict[str, Any]) -> dict[str, Any]:
        capabilities = {"serverTools": {}, "serverResources": {}, "updateModelContext": {"text": {}}}
        return {
            "protocolVersion": "2026-01-26",
            "hostInfo": {"name": "a host", "version": "1"},
            "hostCapabilities": capabilities,
            "hostContext": {"theme": self.theme, "availableDisplayModes": ["inline", "fullscreen"]},
        }

    async def _initialized(self, _: dict[str, Any]) -> list[dict[str, Any]]:
        arguments, result = self.first
        return [
            {"jsonrpc": "2.0", "method": "ui/notifications/tool-input", "params": {"arguments": arguments}},
            {"jsonrpc": "2.0", "method": "ui/notifications/tool-result", "params": result},
        ]

    async def _call(self, params: dict[str, Any]) -> dict[str, Any]:
        self.calls.append((params["name"], params["arguments"]))
        return plain(await self.client.call_tool(params["name"], params["arguments"]))

    async def _read(self, params: dict[str, Any]) -> dict[str, Any]:
        return plain(await self.client.read_resource(params["uri"]))

    async def _update(self, params: dict[str, Any]) -> dict[str, Any]:
        self.context.append(params["content"][0]["text"])
        return {}


RESPONSES: dict[str, Callable[[Host, dict[str, Any]], Awaitable[Any]]] = {
    "ui/initialize": Host._initialize,
    "ui/notifications/initialized": Host._initialized,
    "tools/call": Host._call,
    "resources/read": Host._read,
    "ui/update-model-context": Host._update,
}


def plain(result: Any) -> dict[str, Any]:
    """A result as it travels."""
    return result.model_dump(by_alias=True, mode="json", exclude_none=True)


def strict(html: str) -> str:
    """The page under a policy that allows nothing but what is inside it: no picture, address, handler or style."""
    hashes = {
        kind: base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        for kind, inside in re.findall(r"<(script|style)[^>]*>(.*?)</\1>", html, re.DOTALL)
    }
    policy = (
        f"default-src 'none'; img-src 'none'; connect-src 'none'; script-src 'sha256-{hashes['script']}'; "
        f"style-src 'sha256-{hashes['style']}'; base-uri 'none'; form-action 'none'"
    )
    return html.replace("<head>", f'<head><meta http-equiv="Content-Security-Policy" content="{policy}">')
