"""A lost index is made anew from the pictures, which are the truth."""

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest

from layerdiffuse_mcp.api.outcome import Outcome
from layerdiffuse_mcp.api.plan import Inputs, Task
from layerdiffuse_mcp.backends.backend import Report, WorkerState
from layerdiffuse_mcp.images.png import png_bytes, read_id, with_id
from layerdiffuse_mcp.jobs.queue import Jobs
from layerdiffuse_mcp.outputs import index as indexes
from layerdiffuse_mcp.outputs.index import Index, index_file
from layerdiffuse_mcp.outputs.query import Query
from layerdiffuse_mcp.outputs.removal import named, remove
from layerdiffuse_mcp.outputs.writer import saved
from layerdiffuse_mcp.settings import Settings
from tests.outputs.made import PATIENCE, PIXELS, draw, encoded, rebuilt
from tests.tasks import planned


class Drawer:
    """A backend that draws two pictures whatever it is asked for."""

    workers = 1

    async def warm_up(self) -> None: ...

    async def run(self, task: Task, inputs: Inputs, report: Report, worker: int | None = None) -> Outcome:
        return encoded(count=2)

    async def unload(self, model: str | None = None) -> list[str]:
        return []

    def state(self) -> list[WorkerState]:
        return [WorkerState("ready", None, {})]

    async def close(self) -> None: ...


def spoil_lost() -> None:
    index_file().unlink()


def spoil_bytes() -> None:
    index_file().write_bytes(b"no database at all" * 1000)


def spoil_half() -> None:
    with open(index_file(), "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 4)


def spoil_tables() -> None:
    with closing(sqlite3.connect(index_file())) as connection:
        connection.execute("DROP TABLE pictures")
        connection.execute("CREATE TABLE pictures (job, number, time)")
        connection.commit()


def spoil_nothing_left() -> None:
    index_file().write_bytes(b"")


@pytest.mark.parametrize("spoil", [spoil_lost, spoil_bytes, spoil_half, spoil_tables, spoil_nothing_left])
def test_a_lost_or_damaged_index_is_made_anew_from_the_recipes_in_the_pictures(
    settings: Settings, spoil: Callable[[], None]
):
    index = Index(settings)
    index.add(draw(settings, "a red apple"), "pocket", "job-1")
    index.add(draw(settings, "a green pear"), "pocket", "job-2")
    before = rebuilt(index)
    assert len(before) == 2
    spoil()
    assert sorted(rebuilt(Index(settings))) == sorted(entry._replace(job=None, number=None) for entry in before)
    Index(settings).add(draw(settings), "pocket", "job-3")
    assert Index(settings).find("job-3", 1) is not None


@pytest.mark.anyio
async def test_the_ids_of_pictures_are_found_again_after_the_index_was_lost(settings: Settings):
    async with Jobs(Drawer(), settings) as jobs:
        job = jobs.submit(planned("a red apple"))
        await jobs.follow(job, PATIENCE)
        assert job.outcome is not None
    first, second = job.outcome.images
    assert (read_id(first.path), read_id(second.path)) == (f"{job.id}-1", f"{job.id}-2")
    rebuilt(Index(settings))  # so that nobody reads in any more what is lost now
    spoil_lost()
    assert [entry.job for entry in rebuilt(Index(settings))] == [job.id, job.id]
    found = Index(settings).find(job.id, 2)
    assert found is not None
    assert (found.path, found.prompt) == (second.path, "a red apple")


def test_an_id_that_is_none_is_not_believed(settings: Settings):
    [picture] = draw(settings)
    data = picture.path.read_bytes()
    for wrong in ("job-1", "../job-1-1", "job-1-9999999", "job-" + "1" * 50 + "-1", ""):
        picture.path.write_bytes(with_id(data, wrong))
        if index_file().exists():
            spoil_lost()
        assert [(entry.job, entry.prompt) for entry in rebuilt(Index(settings))] == [(None, "a red apple")]


def test_another_version_of_the_tables_is_made_from_the_pictures_and_leaves_the_old_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    Index(settings).add(draw(settings), "pocket", "job-1")
    with monkeypatch.context() as patch:
        patch.setattr(indexes, "VERSION", indexes.VERSION + 1)
        assert [entry.prompt for entry in rebuilt(Index(settings))] == ["a red apple"]
        assert Index(settings).find("job-1", 1) is None
    assert Index(settings).find("job-1", 1) is not None


def test_a_rebuilding_reads_the_newest_pictures_and_no_links_or_strange_files(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
):
    monkeypatch.setattr(indexes, "READ", 4)
    pictures = [draw(settings, f"apple {number}")[0].path for number in range(3)]
    for number, path in enumerate(pictures):
        os.utime(path, (1000 + number, 1000 + number))
    outside = tmp_path_factory.mktemp("outside") / "outside.png"
    outside.write_bytes(pictures[0].read_bytes())
    (settings.output / "link.png").symlink_to(outside)
    os.mkfifo(settings.output / "pipe.png")
    (settings.output / "damaged.png").write_bytes(b"x")
    (settings.output / "huge.png").write_bytes(
        png_bytes(PIXELS, recipe={"request": {"prompt": "huge", "seed": 2**80, "width": "8", "stages": 5}})
    )
    found = rebuilt(Index(settings))
    assert {entry.prompt for entry in found} == {"huge", "apple 2", "apple 1"}
    found = [entry for entry in found if entry.prompt == "huge"]
    assert (found[0].seed, found[0].width, found[0].family) == (None, None, None)


def test_a_picture_is_dated_when_it_was_drawn_and_not_when_its_file_was_touched(settings: Settings):
    drawn = datetime(2024, 2, 29, 13, 14, 15)
    [image] = saved(encoded().model_copy(update={"dated": drawn}), settings.output).images
    other = settings.output / "other.png"
    other.write_bytes(image.path.read_bytes())
    os.utime(other, (1e9, 1e9))
    os.utime(image.path, (2e9, 2e9))
    assert [(entry.path.name, entry.time) for entry in rebuilt(Index(settings))] == [
        (image.path.name, drawn.timestamp()), ("other.png", 1e9)
    ]  # fmt: skip


def test_a_search_waits_for_pictures_that_are_read_in_or_says_that_it_did_not(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    draw(settings)
    assert Index(settings).search(Query()).complete
    spoil_lost()
    held = threading.Event()

    def wait(_: Path) -> list[Path]:
        held.wait(PATIENCE)
        return []

    monkeypatch.setattr(indexes, "_newest_files", wait)
    monkeypatch.setattr(indexes, "REBUILT_WITHIN", 0.01)
    index = Index(settings)
    assert not index.search(Query()).complete
    held.set()
    assert index.rebuilding is not None
    index.rebuilding.join(PATIENCE)
    assert index.search(Query()).complete


def test_what_was_read_in_again_is_deleted_only_where_it_holds_a_recipe(settings: Settings):
    [image] = draw(settings)
    own = image.path.with_name("own.png")
    own.write_bytes(png_bytes(PIXELS))
    index = Index(settings)
    assert [entry.path for entry in rebuilt(index)] == [image.path]
    assert (named(index, str(own)), named(index, str(image.path)) is None) == (None, False)
    removed = remove(index, rebuilt(index))
    assert ([file.path for file in removed.deleted], removed.left) == ([image.path], [])
    assert own.is_file()
