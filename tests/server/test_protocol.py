"""What the protocol has beside tools: icons, cache hints, subscriptions, and questions to the person at the client."""

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

import anyio
import numpy as np
import pytest
from mcp import Client
from mcp.client import ClientRequestContext
from mcp.server.subscriptions import ResourcesListChanged, ResourceUpdated
from mcp_types import ElicitRequestFormParams, ElicitRequestParams, ElicitResult, Icon
from PIL import Image

from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.families.entries import HubFile
from layerdiffuse_mcp.families.registry import BASES, LAYER_FILES, ROUTES
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.images.png import png_bytes
from layerdiffuse_mcp.recipes.recipe import FORMAT
from layerdiffuse_mcp.server.app import create_server
from layerdiffuse_mcp.settings import Settings
from tests.hub.conftest import hub as hub
from tests.hub.double import Hub
from tests.hub.files import weights, write
from tests.results import facts_of, text_of

Connect = Callable[..., AbstractAsyncContextManager[Client]]

pytestmark = pytest.mark.anyio

BASE = "realistic-vision-v51"
RESTRICTED = b"""
[[base]]
name = "gift"
repo = "someone/gift"
file = "gift.safetensors"
family = "sd15"
licence = "cc-by-nc-4.0"
"""
PATIENCE = 60


class Person:
    """Somebody at a client, who gives one answer and remembers the questions."""

    def __init__(self, answer: ElicitResult) -> None:
        self.answer = answer
        self.asked: list[str] = []

    async def __call__(self, context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        assert isinstance(params, ElicitRequestFormParams)
        self.asked.append(params.message)
        return self.answer


AGREES = ElicitResult(action="accept", content={"fetch": True})
REFUSALS = {
    "no": ElicitResult(action="accept", content={"fetch": False}),
    "declined": ElicitResult(action="decline"),
    "closed": ElicitResult(action="cancel"),
}


@pytest.fixture
def filled(hub: Hub) -> Hub:
    """A hub with the published files of SD1.5 and a base that is not for commercial use, 500 kB each."""
    remotes = [*(entry.remote for entry in BASES if entry.remote), *LAYER_FILES.values()]
    for seed, file in enumerate(file for file in remotes if file.sha256 is None):
        hub.add(file.repo, file.path, weights(500_000, seed))
    hub.add("someone/gift", "gift.safetensors", weights(500_000, 99))
    return hub


@pytest.fixture
def ask(settings: Settings, rehearsal: str, era: str) -> Connect:
    """Opens a client with somebody at it, or with nobody."""

    @asynccontextmanager
    async def open_client(person: Person | None, **changes: object) -> AsyncIterator[Client]:
        server = create_server(settings.model_copy(update=changes), lambda given: LocalBackend(given, rehearsal))
        async with Client(server, mode=era, elicitation_callback=person) as client:
            yield client

    return open_client


async def test_a_drawing_asks_and_fetches_what_its_model_lacks(filled: Hub, ask: Connect):
    person = Person(AGREES)
    async with ask(person) as client:
        drawn = await client.call_tool("generate_layers", {"prompt": "steps 1", "options": {"model": BASE}})
        again = await client.call_tool("generate_layers", {"prompt": "steps 1", "options": {"model": BASE}})
    assert facts_of(drawn)["status"] == facts_of(again)["status"] == "done", text_of(drawn)
    [question] = person.asked
    assert "Fetch 2.89 GB from" in question
    assert "layer_sd15_joint.safetensors" in question
    assert "Licence: creativeml-openrail-m" in question


@pytest.mark.parametrize("answer", REFUSALS.values(), ids=REFUSALS.keys())
@pytest.mark.parametrize("tool", ["generate_transparent", "prepare_model"])
async def test_whoever_refuses_gets_an_error_and_no_file(filled: Hub, ask: Connect, tool: str, answer: ElicitResult):
    given = {"model": BASE} if tool == "prepare_model" else {"prompt": "steps 1", "options": {"model": BASE}}
    async with ask(Person(answer)) as client:
        result = await client.call_tool(tool, given)
    assert result.is_error
    assert "declined the download, and nothing was fetched" in text_of(result)
    assert not filled.requests


DRAWN_WITH = {"options": {"model": BASE}}
[METHOD] = ROUTES[Task.TRANSPARENT, "sd15"]
RECIPE = {
    "format": FORMAT,
    "request": {
        "task": "transparent", "model": BASE, "prompt": "steps 1", "seed": 1, "width": 64, "height": 64,
        "stages": [
            {"method": METHOD, "sampler": "Euler", "schedule": "Karras", "steps": 1, "guidance_scale": 5}
        ],
    },
}  # fmt: skip
FETCHING: dict[str, list[dict[str, object]]] = {
    "generate_transparent": [{"prompt": "x", **DRAWN_WITH}],
    "edit_transparent": [{"prompt": "x", "image": "old.png", **DRAWN_WITH}],
    "upscale_transparent": [{"prompt": "x", "image": "old.png", **DRAWN_WITH}],
    "generate_layers": [{"prompt": "x", **DRAWN_WITH}],
    "generate_background_from_foreground": [{"prompt": "x", "foreground": "old.png", **DRAWN_WITH}],
    "generate_foreground_from_background": [{"prompt": "x", "background": "old.png", **DRAWN_WITH}],
    "extract_layer": [
        {"prompt": "x", "blended": "old.png", "background": "old.png", "options": {"model": "juggernaut-xl-v6"}}
    ],
    "decompose_image": [{"prompt": "x", "image": "old.png"}],
    "generate_set": [{"subjects": ["x", "y"], **DRAWN_WITH}],
    "redraw_image": [
        {"image": "old.png"},
        {"parameters": f"x\nSteps: 1, Model: {BASE}"},
        {"image": "old.png", "changes": {"prompt": "y", **DRAWN_WITH}},
    ],
    "decode_transparent_latent": [{"latent": "old.safetensors", "model": BASE}],
    "encode_transparent_image": [{"image": "old.png", "model": BASE}],
    "cut_out": [{"image": "old.png", "model": "birefnet"}],
    "prepare_model": [{"model": BASE}],
}
"""Calls of each tool that uses a model, one that is not here."""
FETCHES_NOTHING = {"find_images", "unload_models"}
"""Tools that take a model's name and use none."""


def names_a_model(schema: object) -> bool:
    """Whether a parameter, at any depth, is a model's name."""
    match schema:
        case {"properties": {**properties}}:
            return "model" in properties or any(map(names_a_model, properties.values()))
        case _:
            return False


async def test_every_tool_that_uses_a_model_asks_before_it_fetches(
    filled: Hub, ask: Connect, settings: Settings, tmp_path: Path
):
    (tmp_path / "old.png").write_bytes(png_bytes(np.zeros((64, 64, 4), np.uint8), recipe=RECIPE))
    (tmp_path / "old.safetensors").write_bytes(b"")
    person = Person(REFUSALS["declined"])
    async with ask(person) as client:
        tools = (await client.list_tools()).tools
        assert {tool.name for tool in tools if names_a_model(tool.input_schema)} - FETCHES_NOTHING == FETCHING.keys()
        for tool, calls in FETCHING.items():
            for given in calls:
                files = {name: str(tmp_path / text) for name, text in given.items() if str(text).startswith("old.")}
                result = await client.call_tool(tool, given | files)
                assert "declined the download, and nothing was fetched" in text_of(result), (tool, text_of(result))
                assert len(person.asked) == 1, tool
                person.asked.clear()
    assert not filled.requests


@pytest.mark.parametrize("tool", ["generate_set", "redraw_image"])
async def test_sets_and_pictures_drawn_again_fetch_what_was_agreed_to(
    filled: Hub, ask: Connect, tmp_path: Path, tool: str
):
    (tmp_path / "old.png").write_bytes(png_bytes(np.zeros((64, 64, 4), np.uint8), recipe=RECIPE))
    calls = {
        "generate_set": {"subjects": ["square red", "square blue"], "sheet": False, **DRAWN_WITH},
        "redraw_image": {"image": str(tmp_path / "old.png")},
    }
    person = Person(AGREES)
    async with ask(person) as client:
        result = await client.call_tool(tool, calls[tool])
    assert "layer_sd15_transparent_attn.safetensors" in person.asked[0]
    assert filled.requests
    assert "has no file layer_sd15_transparent_attn.safetensors" in text_of(result)  # the hub of these tests


async def test_preparing_asks_above_100_mb_where_somebody_can_be_asked(filled: Hub, ask: Connect):
    person = Person(AGREES)
    async with ask(person) as client:
        assert not (await client.call_tool("prepare_model", {"model": BASE, "task": "layers"})).is_error
    assert len(person.asked) == 1


async def test_preparing_is_consent_where_nobody_can_be_asked(filled: Hub, ask: Connect):
    async with ask(None) as client:
        assert not (await client.call_tool("prepare_model", {"model": BASE, "task": "layers"})).is_error


async def test_a_drawing_that_nobody_can_be_asked_for_says_how_to_fetch(filled: Hub, ask: Connect):
    async with ask(None) as client:
        result = await client.call_tool("generate_transparent", {"prompt": "x", "options": {"model": BASE}})
    assert result.is_error
    assert f"`layerdiffuse-mcp models prepare {BASE} --task transparent`" in text_of(result)
    assert not filled.requests


async def test_nobody_is_asked_for_what_the_settings_allow(filled: Hub, ask: Connect):
    person = Person(REFUSALS["no"])
    async with ask(person, auto_download=True) as client:
        drawn = await client.call_tool("generate_layers", {"prompt": "steps 1", "options": {"model": BASE}})
    assert not drawn.is_error, text_of(drawn)
    assert not person.asked


@pytest.mark.parametrize("tool", ["generate_layers", "prepare_model"])
async def test_what_is_not_for_commercial_use_is_asked_for_whatever_the_settings_say(
    filled: Hub, ask: Connect, settings: Settings, tool: str
):
    write(settings.models_dir / "models.toml", RESTRICTED)
    given = (
        {"model": "gift", "task": "layers"}
        if tool == "prepare_model"
        else {"prompt": "steps 1", "options": {"model": "gift"}}
    )
    async with ask(None, auto_download=True) as client:
        refused = await client.call_tool(tool, given)
    assert refused.is_error
    assert "cc-by-nc-4.0" in text_of(refused)
    assert "`layerdiffuse-mcp models prepare gift`" in text_of(refused)
    assert not filled.requests
    person = Person(AGREES)
    async with ask(person, auto_download=True) as client:
        allowed = await client.call_tool(tool, given)
    assert not allowed.is_error, text_of(allowed)
    assert "Not all of it is free for commercial use." in person.asked[0]


async def test_nobody_is_asked_for_what_could_not_be_drawn_with(filled: Hub, ask: Connect):
    """A layer file of this base is made of a pickle, by a command."""
    person = Person(AGREES)
    async with ask(person, auto_download=True) as client:
        refused = await client.call_tool("generate_transparent", {"prompt": "x", "options": {"model": "flux-1-dev"}})
    assert "models prepare flux-1-dev" in text_of(refused)
    assert not person.asked
    assert not filled.requests


@pytest.mark.parametrize(
    ("licence", "commercial"),
    [
        (None, True),
        ("MIT", True),
        ("creativeml-openrail-m", True),
        ("cc-by-4.0", True),
        ("cc-by-nc-4.0", False),
        ("CC-BY-NC-SA-4.0", False),
        ("flux-1-dev-non-commercial-license", False),
        ("Noncommercial", False),
        ("research licence", False),
    ],
)
def test_licences_that_forbid_commercial_use_are_known_by_their_names(licence: str | None, commercial: bool):
    assert HubFile(repo="a/b", path="c.safetensors", licence=licence).commercial is commercial


def shown(icon: Icon) -> bytes:
    """What an icon holds."""
    assert icon.src.startswith("data:")
    head, _, data = icon.src.partition(",")
    return base64.b64decode(data) if head.endswith(";base64") else unquote(data).encode()


async def test_all_that_is_listed_has_a_title_and_a_small_icon(connect: Connect):
    async with connect() as client:
        tools = (await client.list_tools()).tools
        prompts = (await client.list_prompts()).prompts
        templates = (await client.list_resource_templates()).resource_templates
    for entry in (*tools, *prompts, *templates):
        assert entry.title
        [icon] = entry.icons or ()
        assert shown(icon).startswith(b"<svg xmlns=")
        assert len(icon.src) < 300


async def test_the_server_introduces_itself_with_a_title_and_an_icon(settings: Settings):
    async with Client(create_server(settings)) as client:
        introduced = client.server_info
        assert introduced
    assert introduced.title == "LayerDiffuse"
    [own] = introduced.icons or ()
    with Image.open(BytesIO(shown(own))) as picture:
        assert (picture.format, own.sizes) == ("PNG", [f"{picture.width}x{picture.height}"])
    assert len(own.src) < 600


async def test_lists_that_do_not_change_may_be_kept(connect: Connect, era: str):
    async with connect() as client:
        lists = [await client.list_tools(), await client.list_prompts(), await client.list_resource_templates()]
        changing = await client.list_resources()
    if era != "legacy":
        assert all((found.ttl_ms, found.cache_scope) == (3_600_000, "public") for found in lists)
        assert (changing.ttl_ms, changing.cache_scope) == (0, "private")


async def test_whoever_subscribed_hears_that_a_job_has_ended(settings: Settings, rehearsal: str):
    server = create_server(settings, lambda given: LocalBackend(given, rehearsal))
    async with Client(server) as client:
        waits = {"prompt": "steps 100000", "output": {"wait_seconds": 0}}
        job_id = facts_of(await client.call_tool("generate_transparent", waits))["job_id"]
        uri = f"layerdiffuse://jobs/{job_id}"
        async with client.listen(resource_subscriptions=[uri], resources_list_changed=True) as events:
            await client.call_tool("cancel_job", {"job_id": job_id})
            with anyio.fail_after(PATIENCE):
                heard = [await anext(events), await anext(events)]
    assert heard == [ResourceUpdated(uri=uri), ResourcesListChanged()]


async def test_a_finished_picture_changes_the_list_too(settings: Settings, rehearsal: str, tmp_path: Path):
    Image.new("RGBA", (8, 8), "red").save(tmp_path / "dot.png")
    server = create_server(settings, lambda given: LocalBackend(given, rehearsal))
    async with Client(server) as client, client.listen(resources_list_changed=True) as events:
        await client.call_tool("compose_layers", {"layers": [{"image": str(tmp_path / "dot.png")}]})
        with anyio.fail_after(PATIENCE):
            assert await anext(events) == ResourcesListChanged()
