"""The viewer is attached to every tool that makes pictures, needs nothing from elsewhere, and changes no result."""

import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from html.parser import HTMLParser
from pathlib import Path

import pytest
from mcp import Client
from mcp.client import advertise
from mcp.server.apps import APP_MIME_TYPE, EXTENSION_ID
from mcp_types import CallToolResult, TextResourceContents
from PIL import Image

from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.server.app import create_server
from layerdiffuse_mcp.server.apps import VIEW, page
from layerdiffuse_mcp.server.tool import WRITES
from layerdiffuse_mcp.server.tools import TOOLS
from layerdiffuse_mcp.settings import Settings

Connect = Callable[..., AbstractAsyncContextManager[Client]]

pytestmark = pytest.mark.anyio

PAGES = ("view.html", "host.html")


async def test_the_page_is_an_app_that_may_load_nothing(connect: Connect):
    async with connect() as client:
        [read] = (await client.read_resource(VIEW)).contents
        assert isinstance(read, TextResourceContents)
        assert read.mime_type == APP_MIME_TYPE
        assert read.meta is not None
        assert read.meta["ui"]["csp"] == {
            "connectDomains": [], "resourceDomains": [], "frameDomains": [], "baseUriDomains": []
        }  # fmt: skip
        assert "permissions" not in read.meta["ui"]


async def test_the_server_says_that_it_has_apps(settings: Settings):
    async with Client(create_server(settings)) as client:  # the SDK leaves this out for clients of the earlier era
        assert EXTENSION_ID in (client.server_capabilities.extensions or {})


async def test_every_tool_that_makes_or_lists_pictures_names_the_page(connect: Connect):
    async with connect() as client:
        tools = (await client.list_tools()).tools
    named = {tool.name for tool in tools if tool.meta == {"ui": {"resourceUri": VIEW}}}
    making = {row.name for row in TOOLS if row.annotations is WRITES} - {"encode_transparent_image"}  # makes a latent
    assert named == making | {"get_job", "find_images"}
    assert not [tool.name for tool in tools if tool.meta and tool.name not in named]


async def test_a_client_with_apps_and_one_without_get_the_same_result(
    settings: Settings, rehearsal: str, era: str, tmp_path: Path
):
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(tmp_path / "red.png")
    answers: list[CallToolResult] = []
    for extensions in ([], [advertise(EXTENSION_ID, {"mimeTypes": [APP_MIME_TYPE]})]):
        server = create_server(settings, lambda given: LocalBackend(given, rehearsal))
        async with Client(server, mode=era, extensions=extensions) as client:
            given = {"image": str(tmp_path / "red.png")}
            composed = await client.call_tool("compose_layers", {"layers": [given], "output": {"preview": False}})
            drawn = await client.call_tool("generate_transparent", {"prompt": "draw", "seed": 1})
            answers += [composed, drawn]
    shapes = [[block.type for block in answer.content] for answer in answers]
    assert shapes[:2] == shapes[2:]
    facts = [sorted(answer.structured_content or {}) for answer in answers]
    assert facts[:2] == facts[2:]
    assert not any(answer.meta and "ui" in answer.meta for answer in answers)


class Tags(HTMLParser):
    """What a page's tags say."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_no_address_and_has_no_handlers_or_styles_in_its_tags(name: str):
    html = page(name)
    assert not re.findall(r"https?:|//\w|@import|\burl\(|data:|\bimport\b", re.sub(r"layerdiffuse://", "", html))
    assert "unsafe" not in html
    for tag, attribute, _ in Tags(html).attributes:
        assert not attribute.startswith("on"), (tag, attribute)
        assert attribute not in ("style", "src", "href", "action", "srcdoc"), (tag, attribute)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_and_makes_no_markup_of_text(name: str):
    html = page(name)
    assert not re.search(r"/\* \w+\.\w+ \*/", html)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", html)
    assert html.count("<script") == html.count("</script>") == html.count("<style") == 1


def test_every_control_of_the_page_has_a_name():
    html = page()
    for control in re.findall(r"<(?:button|input)[^>]*>[^<]*", html):
        words = re.sub(r"<[^>]*>", "", control).strip()
        labelled = "aria-label=" in control or re.search(rf"<label>[^<]*{re.escape(control.strip())}", html)
        assert labelled or re.search(r"\w{2}", words), control


def test_scripts_use_only_parts_that_the_page_has():
    html = page()
    ids = set(re.findall(r'\bid="([\w-]+)"', html))
    used = set(re.findall(r'(?:\$|listen|press|isPressed)\("([\w-]+)"', html))
    assert used <= ids
