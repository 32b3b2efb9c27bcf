"""One file from the hub: whole, resumed, verified, refused."""

import os
import resource
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import WeakFileLock

from layerdiffuse_mcp.errors import Cancelled, DownloadError
from layerdiffuse_mcp.families.entries import HubFile
from layerdiffuse_mcp.hub.fetch import fetch, look_up
from layerdiffuse_mcp.hub.leftovers import PART, STALE_PART, sweep
from tests.hub.double import COMMIT, Break, Damage, Hub, Slow, Status, Whole, sha256
from tests.hub.files import weights

REPO, NAME = "someone/something", "folder/base.safetensors"
REMOTE = HubFile(repo=REPO, path=NAME)
CONTENT = weights(300_000)


@dataclass
class Watching:
    """Counts what it is told, and may stop the download."""

    stop_at: int | None = None
    here: int = 0
    said: list[str] = field(default_factory=list)

    def moved(self, count: int) -> None:
        self.here += count
        if self.stop_at is not None and self.here >= self.stop_at:
            raise Cancelled("The job was cancelled.")

    def say(self, message: str) -> None:
        self.said.append(message)

    note = say


@pytest.fixture
def filled(hub: Hub) -> Hub:
    hub.add(REPO, NAME, CONTENT)
    return hub


def cached(remote: HubFile = REMOTE) -> str | None:
    found = try_to_load_from_cache(remote.repo, remote.path)
    return found if isinstance(found, str) else None


def incomplete() -> list[Path]:
    return list(Path(constants.HF_HUB_CACHE).rglob(f"*{PART}"))


def test_a_file_lands_in_the_hubs_own_cache_under_its_name(filled: Hub):
    watch = Watching()
    path = fetch(look_up(REMOTE, Watching()), watch)
    assert path.read_bytes() == CONTENT
    assert path.name == "base.safetensors"
    assert cached() == str(path)
    assert watch.here == len(CONTENT)
    assert not incomplete()


def test_a_broken_connection_is_taken_up_where_it_broke(filled: Hub):
    filled.faults += [Break(100_000), Break(50_000)]
    watch = Watching()
    assert fetch(look_up(REMOTE, Watching()), watch).read_bytes() == CONTENT
    assert [asked.range for asked in filled.asked("store")] == [None, "bytes=100000-", "bytes=150000-"]
    assert watch.here == len(CONTENT)
    assert all("broke" in said for said in watch.said)


def test_what_a_stopped_download_has_is_used_by_the_next(filled: Hub):
    filled.faults.append(Slow(20_000, 0.01))
    with pytest.raises(Cancelled):
        fetch(look_up(REMOTE, Watching()), Watching(stop_at=100_000))
    assert cached() is None
    here = look_up(REMOTE, Watching()).here
    assert here >= 100_000
    watch = Watching(here=here)
    assert fetch(look_up(REMOTE, Watching()), watch).read_bytes() == CONTENT
    assert filled.asked("store")[-1].range == f"bytes={here}-"
    assert watch.here == len(CONTENT)


def test_a_server_without_ranges_is_read_from_the_beginning_again(filled: Hub):
    filled.faults += [Break(100_000), Whole()]
    watch = Watching()
    assert fetch(look_up(REMOTE, Watching()), watch).read_bytes() == CONTENT
    assert watch.here == len(CONTENT)


def test_a_passing_error_of_the_server_is_waited_out(filled: Hub):
    filled.faults += [Status(503), Status(500), Status(429)]
    assert fetch(look_up(REMOTE, Watching()), Watching()).read_bytes() == CONTENT


def test_a_stalled_server_is_asked_again_after_a_while(filled: Hub):
    filled.faults.append(Slow(100_000, 1.5))
    assert fetch(look_up(REMOTE, Watching()), Watching()).read_bytes() == CONTENT
    assert len(filled.asked("store")) > 1


def test_a_damaged_file_is_named_and_fetched_again_once(filled: Hub):
    filled.faults.append(Damage())
    watch = Watching()
    assert fetch(look_up(REMOTE, Watching()), watch).read_bytes() == CONTENT
    assert len(filled.asked("store")) == 2
    assert any("base.safetensors was damaged" in said for said in watch.said)
    assert watch.here == len(CONTENT)


def test_a_file_damaged_twice_is_given_up_and_leaves_nothing(filled: Hub):
    filled.faults += [Damage(), Damage()]
    with pytest.raises(DownloadError, match=r"base.safetensors was damaged .* twice in a row"):
        fetch(look_up(REMOTE, Watching()), Watching())
    assert cached() is None
    assert not incomplete()


def test_a_damaged_partial_file_does_not_get_through(filled: Hub):
    source = look_up(REMOTE, Watching())
    source.partial.parent.mkdir(parents=True)
    source.partial.write_bytes(bytes(1000))
    watch = Watching(here=1000)
    assert fetch(source, watch).read_bytes() == CONTENT
    assert watch.here == len(CONTENT)


def test_a_partial_file_that_is_too_long_is_begun_again(filled: Hub):
    source = look_up(REMOTE, Watching())
    source.partial.parent.mkdir(parents=True)
    source.partial.write_bytes(bytes(len(CONTENT) + 5))
    watch = Watching(here=source.here)
    assert fetch(source, watch).read_bytes() == CONTENT
    assert watch.here == len(CONTENT)


def test_a_known_checksum_or_its_beginning_is_verified(filled: Hub):
    known = HubFile(repo=REPO, path=NAME, sha256=sha256(CONTENT)[:10])
    assert fetch(look_up(known, Watching()), Watching()).read_bytes() == CONTENT


def test_another_file_than_the_published_one_is_refused_before_it_is_fetched(filled: Hub):
    with pytest.raises(DownloadError, match="another file than the published one"):
        look_up(HubFile(repo=REPO, path=NAME, sha256="b7919c5b"), Watching())
    assert not filled.asked("store")


def test_a_small_file_without_a_checksum_is_verified_by_the_known_one(hub: Hub):
    hub.add(REPO, NAME, CONTENT, lfs=False)
    known = HubFile(repo=REPO, path=NAME, sha256=sha256(CONTENT))
    assert fetch(look_up(known, Watching()), Watching()).read_bytes() == CONTENT
    hub.add(REPO, "other.safetensors", weights(1000), lfs=False)
    with pytest.raises(DownloadError, match="twice in a row"):
        fetch(look_up(HubFile(repo=REPO, path="other.safetensors", sha256=sha256(CONTENT)), Watching()), Watching())


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "model.pt", "model.pkl"])
def test_pickles_are_not_even_asked_for(hub: Hub, name: str):
    with pytest.raises(DownloadError, match=r"only .safetensors"):
        look_up(HubFile(repo=REPO, path=name), Watching())
    assert not hub.requests


@pytest.mark.parametrize(
    "known",
    [{}, {"sha256": sha256(CONTENT)}, {"revision": COMMIT}, {"revision": COMMIT, "sha256": sha256(CONTENT)[:10]}],
    ids=["nothing", "no commit", "no checksum", "part of a checksum"],
)
def test_a_graph_that_is_not_pinned_is_not_even_asked_for(hub: Hub, known: dict[str, str]):
    with pytest.raises(DownloadError, match=r"only .safetensors"):
        look_up(HubFile(repo=REPO, path="model.onnx", **known), Watching())
    assert not hub.requests


def test_a_pinned_graph_is_the_one_of_its_commit_though_the_repository_has_moved_on(hub: Hub):
    graph = b"the graph that was chosen"
    hub.add(REPO, "model.onnx", graph)
    hub.move(REPO, "model.onnx", b"another graph")
    chosen = HubFile(repo=REPO, path="model.onnx", revision=COMMIT, sha256=sha256(graph))
    assert fetch(look_up(chosen, Watching()), Watching()).read_bytes() == graph
    with pytest.raises(DownloadError, match="another file than the published one"):
        look_up(chosen.model_copy(update={"sha256": sha256(b"what was published")}), Watching())


def test_a_pickle_under_another_name_does_not_stay(hub: Hub):
    hub.add(REPO, NAME, b"PK\x03\x04" + bytes(1000))
    with pytest.raises(DownloadError, match=r"base.safetensors is a pickle file"):
        fetch(look_up(REMOTE, Watching()), Watching())
    assert cached() is None
    assert not incomplete()


def test_the_token_goes_to_the_hub_and_not_to_its_store(filled: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_valid")
    filled.repos[REPO].private_to = "hf_valid"
    fetch(look_up(REMOTE, Watching()), Watching())
    assert {asked.token for asked in filled.asked("hub", "HEAD")} == {"hf_valid"}
    assert {asked.token for asked in filled.asked("store")} == {None}


def test_two_who_want_the_same_file_fetch_it_once(filled: Hub):
    filled.faults.append(Slow(30_000, 0.05))
    watches, paths = [Watching(), Watching()], []
    threads = [
        threading.Thread(target=lambda watch=watch: paths.append(fetch(look_up(REMOTE, Watching()), watch)))
        for watch in watches
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == CONTENT for path in paths] == [True, True]
    assert len(filled.asked("store")) == 1
    assert any("waiting" in said for watch in watches for said in watch.said)


def test_a_hub_that_moves_on_in_between_gives_the_file_that_was_looked_up(filled: Hub):
    known = HubFile(repo=REPO, path=NAME, sha256=sha256(CONTENT))
    source = look_up(known, Watching())
    filled.move(REPO, NAME, weights(1000, seed=1))
    assert fetch(source, Watching()).read_bytes() == CONTENT
    assert sorted(path.name for path in source.blob.parent.iterdir()) == [sha256(CONTENT)]


def test_a_file_that_the_hub_changed_is_another_file_of_the_cache(filled: Hub):
    first = fetch(look_up(REMOTE, Watching()), Watching())
    filled.move(REPO, NAME, weights(1000, seed=1))
    second = fetch(look_up(REMOTE, Watching()), Watching())
    assert first.read_bytes() == CONTENT
    assert second.read_bytes() == weights(1000, seed=1)
    assert cached() == str(second)


def test_a_silent_hub_is_given_up_at_once_when_the_job_is_cancelled(filled: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 600)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 600)
    source = look_up(REMOTE, Watching())
    filled.talks.clear()
    begun = time.monotonic()
    for wait in (lambda watch: look_up(REMOTE, watch), lambda watch: fetch(source, watch)):
        with pytest.raises(Cancelled):
            wait(Watching(stop_at=0))
    assert time.monotonic() - begun < 60


def test_a_disk_that_is_full_leaves_no_half_file_under_a_final_name(filled: Hub):
    source = look_up(REMOTE, Watching())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            fetch(source, Watching())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert cached() is None
    assert not source.blob.exists()
    assert fetch(source, Watching()).read_bytes() == CONTENT


def test_content_of_the_wrong_length_is_not_taken_for_the_file(filled: Hub):
    source = look_up(REMOTE, Watching())
    source.blob.parent.mkdir(parents=True)
    source.blob.write_bytes(CONTENT[:1000])
    assert fetch(source, Watching()).read_bytes() == CONTENT


def test_only_own_partial_files_that_nobody_goes_on_with_are_swept(filled: Hub):
    source = look_up(REMOTE, Watching())
    blobs = source.blob.parent
    blobs.mkdir(parents=True)
    names = {name: f"{name}{PART}" for name in ("old", "young", "busy")} | {"foreign": "other.incomplete"}
    for name in names.values():
        (blobs / name).write_bytes(b"part")
        if not name.startswith("young"):
            os.utime(blobs / name, times=(time.time() - 2 * STALE_PART,) * 2)
    lock = Path(constants.HF_HUB_CACHE) / ".locks" / source.folder.name / "busy.lock"
    lock.parent.mkdir(parents=True)
    with WeakFileLock(lock):
        sweep()
    assert {path.name for path in blobs.iterdir()} == set(names.values()) - {names["old"]}


@pytest.mark.parametrize("etag", ["../../../outside", "a/b", ""])
def test_a_checksum_that_is_a_path_is_refused(filled: Hub, monkeypatch: pytest.MonkeyPatch, etag: str):
    monkeypatch.setattr("tests.hub.double.sha256", lambda _: etag)
    with pytest.raises(DownloadError, match="HF_ENDPOINT"):
        look_up(REMOTE, Watching())
