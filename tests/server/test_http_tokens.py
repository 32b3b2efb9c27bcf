"""Two clients with a token each: neither sees, reads, repeats, stops or deletes what is the other's.

Anna has drawn a picture, composed one of a picture that she alone may read, and has a job that runs; Bob knows all its
ids, paths, keys and hashes, and tries.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, ResourceTemplateReference, TextContent
from PIL import Image

from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.server.app import create_server_for
from layerdiffuse_mcp.server.http import http_app
from layerdiffuse_mcp.server.tokens import guarding, hash_of, new_token
from layerdiffuse_mcp.settings import Settings
from tests.conftest import PROGRAMS
from tests.server.served import bearing, connected, served

pytestmark = pytest.mark.anyio

ANNA, BOB, WATCHER = new_token(), new_token(), new_token()
MODERN = "2026-07-28"
PROMPT = "square red, a secret of hers"


class World(NamedTuple):
    """A served pair of clients, and what Bob knows of Anna's."""

    url: str
    folder: Path
    drawn: str
    picture: Path
    composed: Path
    latent: Path
    running: str


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    for name in ("hers", "shared", "state"):
        (folder / name).mkdir()
    for path, colour in (("hers/secret.png", "blue"), ("shared/plain.png", "white")):
        Image.new("RGBA", (24, 24), colour).save(folder / path)
    entries = {
        "anna": {"sha256": hash_of(ANNA), "read_dirs": [str(folder / "hers"), str(folder / "shared")]},
        "bob": {"sha256": hash_of(BOB), "read_dirs": [str(folder / "shared")]},
        "watcher": {"sha256": hash_of(WATCHER), "metrics": True},
    }
    file = folder / "tokens.json"
    file.write_text(json.dumps(entries))
    file.chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        patch.syspath_prepend(PROGRAMS)
        settings = Settings(output_dir=folder / "out", tokens_file=file, warm_up=False, group_jobs=False)
        tokens = guarding(None, settings)
        server = create_server_for(tokens, settings, lambda given: LocalBackend(given, "rehearsal:Engine"))
        with served(http_app(server, "127.0.0.1", tokens)) as url:
            yield anyio.run(prepared, url, folder)


async def prepared(url: str, folder: Path) -> World:
    async with connected(url, MODERN, ANNA) as anna:
        asked = {"prompt": PROMPT, "output": {"key": "mine", "save_latent": True}}
        drawn = facts(await anna.call_tool("generate_transparent", asked))
        layers = [{"image": drawn["images"][0]["path"]}, {"image": str(folder / "hers" / "secret.png")}]
        composed = facts(await anna.call_tool("compose_layers", {"layers": layers}))
        running = facts(
            await anna.call_tool("generate_transparent", {"prompt": "steps 1000000", "output": {"wait_seconds": 0}})
        )
    picture = Path(drawn["images"][0]["path"])
    return World(
        url, folder, drawn["job_id"], picture, Path(composed["path"]), Path(drawn["latents"][0]), running["job_id"]
    )


def facts(result: CallToolResult) -> dict[str, Any]:
    assert not result.is_error, text(result)
    assert result.structured_content is not None
    return result.structured_content


def text(result: CallToolResult) -> str:
    return "\n".join(block.text for block in result.content if isinstance(block, TextContent))


def tells(world: World, said: object) -> list[str]:
    """What of Anna's is in an answer."""
    found = str(said)
    return [secret for secret in ("a secret of hers", "secret.png", str(world.running)) if secret in found]


def tries(world: World) -> dict[str, tuple[str, dict[str, Any]]]:
    """Calls of Bob's for which he needs something of Anna's."""
    image, path, plain = f"{world.drawn}-1", str(world.picture), str(world.folder / "shared" / "plain.png")
    named = {
        "id": image,
        "address": f"layerdiffuse://images/{image}",
        "path": path,
        "file address": world.picture.as_uri(),
        "path out of his own": f"../anna/{world.picture.relative_to(world.folder / 'out' / 'anna')}",
        "path through what he may read": str(world.folder / "shared" / ".." / "hers" / "secret.png"),
        "path through his own output": str(world.folder / "out" / "bob" / ".." / "anna" / path.partition("/anna/")[2]),
    }
    calls = {f"inspect by {how}": ("inspect_image", {"image": name}) for how, name in named.items()}
    return calls | {
        "wait": ("get_job", {"job_ids": [world.drawn]}),
        "watch": ("get_job", {"job_ids": [world.running], "wait_seconds": 0}),
        "stop": ("cancel_job", {"job_id": world.running}),
        "redraw": ("redraw_image", {"image": image}),
        "redraw a path": ("redraw_image", {"image": path}),
        "edit": ("edit_transparent", {"prompt": "x", "image": image}),
        "compose": ("compose_layers", {"layers": [{"image": image}]}),
        "compose anew": ("compose_layers", {"source": str(world.composed), "replace": {}}),
        "lay below": ("compose_layers", {"layers": [{"image": plain}], "background": path}),
        "sheet": ("make_sheet", {"images": [{"image": image}]}),
        "cut out": ("cut_out", {"image": path, "background": "white"}),
        "encode": ("encode_transparent_image", {"image": image}),
        "decode": ("decode_transparent_latent", {"latent": str(world.latent)}),
        "background": ("generate_background_from_foreground", {"prompt": "x", "foreground": path}),
    }


async def test_what_is_hers_is_refused_to_him_by_every_name(world: World, era: str):
    async with connected(world.url, era, BOB) as bob:
        for how, (tool, arguments) in tries(world).items():
            result = await bob.call_tool(tool, arguments)
            assert result.is_error, how
            assert re.match("There is no job '|.* lies outside the folders that may be read", text(result)), how
    async with connected(world.url, era, ANNA) as anna:
        still = facts(await anna.call_tool("get_job", {"job_ids": [world.running], "wait_seconds": 0}))
    assert still["jobs"][0]["status"] == "running"


async def test_his_lists_hold_nothing_of_hers(world: World, era: str):
    async with connected(world.url, era, BOB) as bob:
        for tool in ("list_jobs", "find_images"):
            assert not tells(world, await bob.call_tool(tool, {})), tool
        status = facts(await bob.call_tool("server_status", {}))
        assert status["running"] == []
        assert status["readable_folders"] == [str(world.folder / "shared"), str(world.folder / "out" / "bob")]
        assert not tells(world, await bob.list_resources())
        for uri in ("layerdiffuse://images/{id}", "layerdiffuse://jobs/{id}"):
            offered = await bob.complete(ResourceTemplateReference(uri=uri), {"name": "id", "value": "job"})
            assert world.drawn not in str(offered)
            assert world.running not in str(offered)
    async with connected(world.url, era, ANNA) as anna:
        assert {world.drawn, world.running} <= {
            job["job_id"] for job in facts(await anna.call_tool("list_jobs", {}))["jobs"]
        }
        assert facts(await anna.call_tool("find_images", {"words": "secret"}))["total"] == 1


async def test_her_resources_are_not_there_for_him(world: World, era: str):
    uris = [
        f"layerdiffuse://images/{world.drawn}-1",
        f"layerdiffuse://images/{world.drawn}-1/view?width=16",
        f"layerdiffuse://jobs/{world.drawn}",
        f"layerdiffuse://jobs/{world.running}",
    ]
    for uri in uris:
        async with connected(world.url, era, BOB) as bob:
            with pytest.raises(Exception, match="There is no job") as refused:
                await bob.read_resource(uri)
            assert "secret" not in str(refused.value)
        async with connected(world.url, era, ANNA) as anna:
            assert (await anna.read_resource(uri)).contents


async def test_he_deletes_nothing_of_hers(world: World):
    names = [f"{world.drawn}-1", str(world.picture), str(world.composed), str(world.latent)]
    async with connected(world.url, MODERN, BOB) as bob:
        result = facts(await bob.call_tool("delete_images", {"images": names}))
    assert result.get("deleted", []) == []
    assert len(result["left"]) == len(names)
    assert all(path.exists() for path in (world.picture, world.composed, world.latent))


async def test_a_recipe_that_names_her_picture_by_its_hash_finds_none_for_him(world: World):
    """A composition keeps the hashes of its pictures: one that he was given tells him no more than that."""
    given = world.folder / "shared" / world.composed.name
    given.write_bytes(world.composed.read_bytes())
    again = {"source": str(given), "replace": {"secret": {"opacity": 1.0}}}
    async with connected(world.url, MODERN, BOB) as bob:
        refused = await bob.call_tool("compose_layers", again)
        assert refused.is_error
        assert "no file with its content" in text(refused)
        assert str(world.folder / "hers") not in text(refused)
    async with connected(world.url, MODERN, ANNA) as anna:
        assert not (await anna.call_tool("compose_layers", again)).is_error


async def test_a_key_is_one_client_s(world: World):
    drawn: dict[str, Any] = {"prompt": PROMPT, "output": {"key": "mine", "save_latent": True}}
    async with connected(world.url, MODERN, BOB) as bob:
        his = facts(
            await bob.call_tool("generate_transparent", drawn | {"output": drawn["output"] | {"wait_seconds": 0}})
        )
        assert his["job_id"] != world.drawn
        await bob.call_tool("cancel_job", {"job_id": his["job_id"]})
    async with connected(world.url, MODERN, ANNA) as anna:
        assert facts(await anna.call_tool("generate_transparent", drawn))["job_id"] == world.drawn


async def test_he_hears_nothing_of_her_jobs(world: World):
    async def made(client: Client, wait: float) -> str:
        asked = {"prompt": "steps 1000000", "output": {"wait_seconds": wait}}
        return facts(await client.call_tool("generate_transparent", asked))["job_id"]

    async with connected(world.url, MODERN, ANNA) as anna, connected(world.url, MODERN, BOB) as bob:
        hers, his = await made(anna, 0), await made(bob, 0)
        uris = [f"layerdiffuse://jobs/{job}" for job in (hers, his)]
        async with bob.listen(resource_subscriptions=uris, resources_list_changed=True) as heard:
            await anna.call_tool("cancel_job", {"job_id": hers})
            await bob.call_tool("cancel_job", {"job_id": his})
            with anyio.fail_after(30):
                first = await anext(aiter(heard))
    assert his in str(first)


async def test_a_session_is_for_the_token_that_opened_it(world: World):
    opening = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "anna", "version": "1"},
        },
    }
    listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "list_jobs", "arguments": {}}}
    accepted = {"Accept": "application/json, text/event-stream"}
    async with httpx2.AsyncClient(headers=accepted, timeout=30) as web:
        opened = await web.post(world.url, json=opening, headers=bearing(ANNA))
        session = {"mcp-session-id": opened.headers["mcp-session-id"]}
        for token, status in ((BOB, 404), (None, 401), (ANNA, 200)):
            answer = await web.post(world.url, json=listing, headers=session | bearing(token))
            assert answer.status_code == status
            assert (world.drawn in answer.text) == (status == 200)
        assert (await web.delete(world.url, headers=session | bearing(BOB))).status_code == 404
        answer = await web.post(world.url, json=listing, headers=session | bearing(ANNA))
        assert answer.status_code == 200


async def test_turns_are_taken_by_token(world: World):
    """However many sessions a client opens, it is one: of her jobs that wait, one at most comes before his."""
    asked = {"prompt": "steps 1", "output": {"wait_seconds": 0}}
    async with connected(world.url, MODERN, ANNA) as anna, connected(world.url, "legacy", ANNA) as again:
        jobs = [facts(await client.call_tool("generate_transparent", asked))["job_id"] for client in [anna, again] * 2]
        async with connected(world.url, MODERN, BOB) as bob:
            his = facts(await bob.call_tool("generate_transparent", asked))
            await bob.call_tool("cancel_job", {"job_id": his["job_id"]})
        for job in jobs:
            await anna.call_tool("cancel_job", {"job_id": job})
    assert re.match(r"waiting: [12] jobs? ahead", his["message"])


PROBES = {"health": {"healthy": True}, "ready": {"ready": True}}


@pytest.mark.parametrize("probe", PROBES)
async def test_probes_need_no_token_and_tell_nothing_else(world: World, probe: str):
    async with httpx2.AsyncClient() as web:
        answer = await web.get(world.url.replace("/mcp", f"/{probe}"))
        assert (answer.status_code, answer.json()) == (200, PROBES[probe])
        for other in (f"/{probe}/", f"/{probe}/../mcp", f"//{probe}", f"/{probe}%2f..%2fmcp"):
            assert (await web.get(world.url.removesuffix("/mcp") + other)).status_code in (401, 404)


async def test_metrics_are_for_tokens_that_may_read_them_and_name_nobody(world: World):
    url = world.url.replace("/mcp", "/metrics")
    async with httpx2.AsyncClient() as web:
        for token, status in ((None, 401), (BOB, 403), (WATCHER, 200)):
            answer = await web.get(url, headers=bearing(token))
            assert answer.status_code == status
    told = answer.text
    assert 'layerdiffuse_jobs_ended_total{state="done"}' in told
    assert 'layerdiffuse_phase_seconds_count{phase="wait"}' in told
    assert "layerdiffuse_queue_length" in told
    assert not [name for name in ("anna", "bob", "secret", world.drawn, str(world.folder)) if name in told]


class Entries:
    """The file of tokens, changed while it is in use; it is as it was afterwards."""

    def __init__(self, world: World) -> None:
        self.file, self.world = world.folder / "tokens.json", world
        self.known: dict[str, Any] = json.loads(self.file.read_text())

    def write(self, **changed: dict[str, Any] | None) -> None:
        entries = {name: entry for name, entry in (self.known | changed).items() if entry is not None}
        self.replace(json.dumps(entries))

    def replace(self, content: str) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(content)
        new.chmod(0o600)
        new.replace(self.file)

    async def refused(self) -> bool:
        async with httpx2.AsyncClient() as web:
            told = await web.get(self.world.url.replace("/mcp", "/metrics"), headers=bearing(WATCHER))
        return "layerdiffuse_tokens_file_refused 1.0" in told.text


@pytest.fixture
def entries(world: World) -> Iterator[Entries]:
    changed = Entries(world)
    yield changed
    changed.write()


async def test_a_new_entry_lets_in_and_one_that_is_removed_ends_what_its_holder_does(world: World, entries: Entries):
    carol = new_token()
    entries.write(carol={"sha256": hash_of(carol), "read_dirs": [str(world.folder / "shared")]})
    async with connected(world.url, MODERN, carol) as client, connected(world.url, MODERN, BOB) as bob:
        layers = {"layers": [{"image": str(world.folder / "shared" / "plain.png")}]}
        composed = facts(await client.call_tool("compose_layers", layers))
        assert Path(composed["path"]).is_relative_to(world.folder / "out" / "carol")

        async def wait() -> None:
            asked = {"prompt": "steps 1000000", "output": {"wait_seconds": 600}}
            with pytest.raises(MCPError):
                await client.call_tool("generate_transparent", asked)

        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                while "waiting" not in str(facts(await client.call_tool("list_jobs", {}))["jobs"]):
                    await anyio.sleep(0.02)
                entries.write()
                await bob.call_tool("list_jobs", {})
        async with httpx2.AsyncClient() as web:
            assert (await web.get(world.url, headers=bearing(carol))).status_code == 401


async def test_a_file_that_cannot_be_used_leaves_the_tokens_as_they_were(
    world: World, entries: Entries, caplog: pytest.LogCaptureFixture
):
    assert not await entries.refused()
    moved = entries.known["bob"] | {"output_dir": str(world.folder / "elsewhere")}
    for content, why in (
        ("{", "is no JSON"),
        (json.dumps(entries.known | {"bob": moved}), "the server has to restart"),
    ):
        entries.replace(content)
        assert await entries.refused()
        assert why in caplog.text
        async with connected(world.url, MODERN, ANNA) as anna:
            assert world.drawn in str(await anna.call_tool("list_jobs", {}))
    entries.write()
    assert not await entries.refused()


async def test_what_an_entry_allows_is_as_the_file_says_now(world: World, entries: Entries):
    plain, asked = {"image": str(world.folder / "shared" / "plain.png")}, {"prompt": "square red", "size": "64x64"}
    async with connected(world.url, MODERN, BOB) as bob:
        facts(await bob.call_tool("inspect_image", plain))
        entries.write(bob={"sha256": hash_of(BOB), "queue_pixels": 1000})
        assert "outside the folders" in text(await bob.call_tool("inspect_image", plain))
        assert "1,000 may be drawn at once" in text(await bob.call_tool("generate_transparent", asked))
