"""The index outlives servers, is shared by them, and never fails a drawing."""

import hashlib
import logging
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types import BlobResourceContents

from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.files import sha256
from layerdiffuse_mcp.outputs import removal
from layerdiffuse_mcp.outputs.index import Entry, Index, index_file
from layerdiffuse_mcp.outputs.query import Query
from layerdiffuse_mcp.outputs.removal import remove
from layerdiffuse_mcp.server.app import create_server
from layerdiffuse_mcp.settings import Settings
from tests.outputs.made import PATIENCE, draw, rebuilt
from tests.results import facts_of, text_of

Connect = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture
def connect(settings: Settings, rehearsal: str) -> Connect:
    """Opens a client on a new server over the same folders."""

    @asynccontextmanager
    async def open_client(**changes: object) -> AsyncIterator[Client]:
        changed = settings.model_copy(update=changes)
        async with Client(create_server(changed, lambda given: LocalBackend(given, rehearsal))) as client:
            yield client

    return open_client


async def composed(client: Client, picture: Path) -> dict[str, Any]:
    return facts_of(
        await client.call_tool("compose_layers", {"layers": [{"image": str(picture)}], "output": {"preview": False}})
    )


def test_a_picture_is_known_by_its_job_and_with_all_that_its_file_says(settings: Settings):
    first, second = draw(settings, count=2)
    Index(settings).add([first, second], "pocket", "job-1")
    found = Index(settings).find("job-1", 2)
    assert found is not None
    digest = hashlib.sha256(second.path.read_bytes()).hexdigest()
    assert found == Entry(
        second.path, "job-1", 2, "foreground", 8, 8, 7, "a red apple", "pocket", "sd15", None, found.time, digest
    )
    assert Index(settings).find("job-1", 3) is None
    assert Index(settings).find("job-2", 1) is None


def test_the_verdict_on_a_picture_is_kept(settings: Settings):
    [drawn] = draw(settings)
    Index(settings).add([drawn.model_copy(update={"verdict": "doubtful"})], "pocket", "job-1")
    found = Index(settings).find("job-1", 1)
    assert found is not None
    assert found.verdict == "doubtful"


def test_the_index_is_for_its_user_alone(settings: Settings, state: Path):
    Index(settings).add(draw(settings), "pocket", "job-1")
    assert stat.S_IMODE(index_file().stat().st_mode) == 0o600
    assert stat.S_IMODE((state / "layerdiffuse").stat().st_mode) == 0o700


DRAW = {"prompt": "draw", "output": {"preview": False}}


@pytest.mark.anyio
async def test_the_id_of_a_drawn_picture_outlasts_the_server(connect: Connect):
    async with connect() as client:
        drawn = facts_of(await client.call_tool("generate_transparent", DRAW))
    [image] = drawn["images"]
    async with connect() as client:
        read = (await client.read_resource(image["uri"])).contents[0]
        assert isinstance(read, BlobResourceContents)
        assert read.mime_type == "image/png"
        assert image["uri"] in [str(known.uri) for known in (await client.list_resources()).resources]


@pytest.mark.anyio
async def test_the_id_of_a_composition_can_be_given_to_a_tool_after_a_restart(connect: Connect, settings: Settings):
    [picture] = draw(settings)
    async with connect() as client:
        made = await composed(client, picture.path)
    async with connect() as client:
        for given in (made["uri"], made["uri"].rpartition("/")[2]):
            found = facts_of(await client.call_tool("inspect_image", {"image": given, "preview": False}))
            assert found["path"] == made["path"]


@pytest.mark.anyio
async def test_an_id_opens_nothing_below_another_output_folder_or_through_a_link(
    connect: Connect, settings: Settings, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    [picture] = draw(settings)
    async with connect() as client:
        made = await composed(client, picture.path)
    async with connect(output_dir=tmp_path / "other") as client:
        with pytest.raises(MCPError, match="There is no job"):
            await client.read_resource(made["uri"])
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.png"
    secret.write_bytes(Path(made["path"]).read_bytes())
    Path(made["path"]).unlink()
    Path(made["path"]).symlink_to(secret)
    async with connect() as client:
        result = await client.call_tool("inspect_image", {"image": made["uri"]})
        assert result.is_error
        assert "lies outside" in text_of(result)
        with pytest.raises(MCPError, match="something else is in its place"):
            await client.read_resource(made["uri"])


@pytest.mark.anyio
@pytest.mark.parametrize("history", [True, False])
async def test_a_file_that_is_gone_is_named_and_one_without_history_never(
    connect: Connect, settings: Settings, history: bool
):
    [picture] = draw(settings)
    async with connect(history=history) as client:
        made = await composed(client, picture.path)
    Path(made["path"]).rename(settings.output / "moved.png")
    async with connect(history=history) as client:
        texts = [text_of(await client.call_tool("inspect_image", {"image": made["uri"]})) for _ in range(2)]
    assert all(("was deleted or moved" if history else "There is no job") in text for text in texts)
    assert index_file().exists() == history


def test_several_servers_write_at_once_into_a_new_index(settings: Settings, tmp_path: Path):
    [picture] = draw(settings)
    script = (
        "import sys; from pathlib import Path; from layerdiffuse_mcp.settings import Settings\n"
        "from layerdiffuse_mcp.api.outcome import ImageResult; from layerdiffuse_mcp.outputs.index import Index\n"
        "index = Index(Settings(output_dir=Path(sys.argv[2]).parent.parent))\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for number in range(25):\n"
        "    path = Path(sys.argv[2]).with_name(f'{sys.argv[1]}-{number}.png'); path.write_bytes(b'')\n"
        "    facts = dict(role='foreground', width=1, height=1, seed=0, alpha=None)\n"
        "    index.add([ImageResult(path=path, **facts)], 'pocket', f'job-{sys.argv[1]}x{number}')\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, name, str(picture.path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name in "ab"
    ]  # fmt: skip
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    assert [writer.communicate(timeout=PATIENCE)[1] for writer in writers] == ["", ""]
    index = Index(settings)
    assert all(index.find(f"job-{name}x{number}", 1) for name in "ab" for number in range(25))


def test_odd_prompts_names_and_folders_are_kept(settings: Settings):
    odd = settings.model_copy(update={"output_dir": settings.output / os.fsdecode(b"od\xffd '\n; folder%_")})
    prompt = "a \ud800 'quoted\"; DROP TABLE pictures; -- \0 \N{RED APPLE}"
    images = draw(odd, prompt)
    Index(odd).add(images, "a\udcff.safetensors", "job-1")
    found = Index(odd).find("job-1", 1)
    assert found is not None
    assert (found.path, found.model) == (images[0].path, "a?.safetensors")
    assert found.prompt == prompt.replace("\ud800", "?")


def test_what_is_gone_drops_out_of_the_list(settings: Settings):
    index = Index(settings)
    first, second = draw(settings, count=2)
    index.add([first, second], "pocket", "job-1")
    second.path.unlink()
    assert [entry.path for entry in index.search(Query(), 10).entries] == [first.path]
    assert index.find("job-1", 2) is None


@pytest.mark.anyio
async def test_a_state_folder_that_cannot_be_written_fails_no_drawing_and_is_warned_of_once(
    connect: Connect, settings: Settings, state: Path, caplog: pytest.LogCaptureFixture
):
    state.mkdir()
    (state / "layerdiffuse").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        async with connect() as client:
            for _ in range(2):
                drawn = facts_of(await client.call_tool("generate_transparent", DRAW))
                assert Path(drawn["images"][0]["path"]).is_file()
    assert len([record for record in caplog.records if "cannot be used" in record.message]) == 1


def test_values_that_look_like_sql_are_values(settings: Settings):
    index = Index(settings)
    index.add(draw(settings, "it's 100% a_b"), "pocket", "job-1")
    for words, count in {"100%": 1, "a_b": 1, "axb": 0, "it's": 1, "' OR '1'='1": 0, "\0": 0, "\ud800": 0}.items():
        assert index.search(Query(words=words)).total == count
    with pytest.raises(InvalidRequest, match="no picture in the history has"):
        index.search(Query(model="pocket' OR '1'='1"))


@pytest.mark.parametrize("of_the_day", [False, True])
def test_a_folder_that_was_away_for_a_while_brings_its_pictures_back(settings: Settings, of_the_day: bool):
    index = Index(settings)
    images = draw(settings, count=2)
    index.add(images, "pocket", "job-1")
    folder = images[0].path.parent if of_the_day else settings.output
    away = folder.rename(settings.output.with_name("away"))
    assert index.search(Query()).total == 0
    assert Index(settings).search(Query()).total == 0
    away.rename(folder)
    assert index.search(Query()).total == Index(settings).search(Query()).total == 2


def test_an_index_that_is_made_while_the_output_folder_is_away_reads_it_in_when_it_is_back(settings: Settings):
    draw(settings)
    away = settings.output.rename(settings.output.with_name("away"))
    assert rebuilt(Index(settings)) == []
    away.rename(settings.output)
    assert len(rebuilt(Index(settings))) == 1


def test_what_could_not_be_written_is_with_the_next_that_can(settings: Settings, state: Path):
    index, records = Index(settings), []
    assert index.search(Query()).total == 0
    first, second, third = draw(settings, count=3)
    state.rename(state.with_name("full"))
    state.write_text("no folder")
    for image, job in ((first, "job-1"), (second, "job-2")):
        index.add([image], "pocket", job)
    index.write(lambda connection: records.append(1))
    state.unlink()
    state.with_name("full").rename(state)
    index.add([third], "pocket", "job-3")
    assert [index.find(f"job-{number}", 1) is not None for number in (1, 2, 3)] == [True] * 3
    assert records == [1]


def test_a_search_passes_over_what_is_gone_and_fills_its_page(settings: Settings):
    index = Index(settings)
    images = draw(settings, count=6)
    index.add(images, "pocket", "job-1")
    for image in images[:2]:
        image.path.unlink()
    found = index.search(Query(), 3)
    assert (len(found.entries), found.total) == (3, 4)
    assert len(index.search(Query(), 3, 3).entries) == 1


def test_a_file_that_is_exchanged_while_it_is_looked_at_stays(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    [image] = draw(settings)
    index = Index(settings)
    index.add([image], "pocket", "job-1")

    def exchanged(file: BinaryIO) -> str:
        digest = sha256(file)
        other = image.path.with_name("other")
        other.write_bytes(image.path.read_bytes())
        other.replace(image.path)
        return digest

    monkeypatch.setattr(removal, "sha256", exchanged)
    removed = remove(index, rebuilt(index))
    assert (removed.deleted, [file.path for file in removed.left]) == ([], [image.path])
    assert image.path.is_file()
