"""Downloads run beside the queue: they hold up no drawing, report, can be cancelled, and lead on to the worker."""

import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import pytest
from huggingface_hub import constants
from mcp import Client

from layerdiffuse_mcp.api.outcome import Progress
from layerdiffuse_mcp.api.plan import Download, Planned
from layerdiffuse_mcp.api.requests import GenerateRequest, PrepareRequest
from layerdiffuse_mcp.backends.local import LocalBackend
from layerdiffuse_mcp.errors import DownloadError, QueueFull
from layerdiffuse_mcp.families.registry import BASES, LAYER_FILES
from layerdiffuse_mcp.families.spec import Task
from layerdiffuse_mcp.hub import catalog, leftovers
from layerdiffuse_mcp.jobs.downloads import DOWNLOADED
from layerdiffuse_mcp.jobs.job import Job, State
from layerdiffuse_mcp.jobs.planner import plan
from layerdiffuse_mcp.jobs.queue import Jobs
from layerdiffuse_mcp.server.app import create_server
from layerdiffuse_mcp.settings import Settings
from tests.hub.double import Hub, Slow
from tests.hub.files import LORA_KEYS, tensors, weights, write
from tests.results import facts_of, text_of
from tests.tasks import planned

pytestmark = pytest.mark.anyio

PATIENCE = 60
BASE = "realistic-vision-v51"
FOREVER = Slow(100, 0.05)
"""A download that lasts for minutes, and never for longer than a test."""


@pytest.fixture
def filled(hub: Hub) -> Hub:
    """A hub with the published bases and layer files, 500 kB each."""
    remotes = [*(entry.remote for entry in BASES if entry.remote), *LAYER_FILES.values()]
    for seed, file in enumerate(file for file in remotes if file.sha256 is None):
        hub.add(file.repo, file.path, weights(500_000, seed))
    return hub


@pytest.fixture
async def jobs(settings: Settings, rehearsal: str) -> AsyncIterator[Jobs]:
    async with Jobs(LocalBackend(settings, rehearsal), settings) as running:
        yield running


def prepare(jobs: Jobs, settings: Settings, task: Task = Task.LAYERS) -> Job:
    return jobs.submit(plan(PrepareRequest(model=BASE, task=task), settings), "prepare_model")


async def reached(happened: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not happened():
            await anyio.sleep(0.01)


def fetched() -> list[Path]:
    """What the model hub's cache shows as whole."""
    return [path for path in Path(constants.HF_HUB_CACHE).rglob("snapshots/**/*") if path.is_file()]


async def test_a_drawing_is_done_while_a_slow_download_runs(filled: Hub, jobs: Jobs, settings: Settings):
    filled.faults += [FOREVER]
    download = prepare(jobs, settings)
    await reached(lambda: download.progress.fraction > 0)
    assert "downloading realisticVisionV51_v51VAE.safetensors (1 of 4)" in jobs.progress(download).message
    drawing = jobs.submit(planned("steps 2"))
    assert jobs.ahead_of(drawing) == 0
    await jobs.follow(drawing, PATIENCE)
    assert (drawing.state, download.state) == (State.DONE, State.DOWNLOADING)
    assert jobs.running == []
    jobs.cancel(download)


async def test_a_cancelled_download_ends_shows_no_half_file_and_the_next_goes_on(
    filled: Hub, jobs: Jobs, settings: Settings
):
    filled.faults += [FOREVER]
    download = prepare(jobs, settings)
    await reached(lambda: download.progress.fraction > 0)
    jobs.cancel(download)
    assert download.state is State.CANCELLED
    await reached(lambda: jobs.downloading == 0)
    assert fetched() == []
    assert not catalog.find(BASE, settings).prepared
    again = prepare(jobs, settings)
    await jobs.follow(again, PATIENCE)
    assert again.state is State.DONE
    assert filled.asked("store")[1].range is not None
    assert len(fetched()) == 4


async def test_a_model_is_loaded_by_the_worker_once_it_is_here_and_progress_never_falls(
    filled: Hub, jobs: Jobs, settings: Settings
):
    heard: list[tuple[State, float]] = []
    download = prepare(jobs, settings)

    async def tell(progress: Progress) -> None:
        heard.append((download.state, progress.fraction))

    while not download.finished:
        await jobs.follow(download, PATIENCE, tell)
    assert download.state is State.DONE
    assert download.outcome is not None
    assert download.outcome.model == BASE
    order = [state for state, _ in heard]
    assert order == sorted(order, key=list(State).index)
    fractions = [fraction for state, fraction in heard if state is not State.QUEUED]
    assert fractions == sorted(fractions)
    assert max(fraction for state, fraction in heard if state is State.DOWNLOADING) <= DOWNLOADED
    assert catalog.find(BASE, settings).prepared


async def test_a_generation_that_may_download_waits_for_its_files_and_then_its_turn(
    filled: Hub, jobs: Jobs, settings: Settings
):
    may = settings.model_copy(update={"auto_download": True})
    drawn = jobs.submit(plan(GenerateRequest(prompt="steps 1", task=Task.LAYERS, model=BASE), may))
    assert drawn.state is State.DOWNLOADING
    await jobs.follow(drawn, PATIENCE)
    assert drawn.state is State.DONE
    assert catalog.find(BASE, settings).prepared
    again = jobs.submit(plan(GenerateRequest(prompt="steps 1", task=Task.LAYERS, model=BASE), may))
    assert again.state is State.QUEUED


async def test_two_jobs_that_lack_the_same_files_fetch_them_once(filled: Hub, jobs: Jobs, settings: Settings):
    filled.faults += [Slow(50_000, 0.05)]
    both = [prepare(jobs, settings) for _ in range(2)]
    for job in both:
        await jobs.follow(job, PATIENCE)
        assert job.state is State.DONE, job.error
    assert len(filled.asked("store")) == 4


async def test_a_lora_is_fetched_without_a_worker(hub: Hub, jobs: Jobs, settings: Settings):
    hub.add("me/mine", "wc.safetensors", tensors(LORA_KEYS))
    listed = b'[[lora]]\nname = "watercolour"\nrepo = "me/mine"\nfile = "wc.safetensors"\n'
    write(settings.models_dir / "models.toml", listed)
    job = jobs.submit(plan(PrepareRequest(model="Watercolour"), settings))
    await jobs.follow(job, PATIENCE)
    assert job.state is State.DONE
    assert catalog.lora("watercolour", settings).read_bytes() == tensors(LORA_KEYS)
    assert jobs.backend.state()[0].phase == "stopped"


async def test_a_download_that_fails_fails_its_job_in_words(hub: Hub, jobs: Jobs, settings: Settings):
    job = prepare(jobs, settings)
    await jobs.follow(job, PATIENCE)
    assert job.state is State.FAILED
    assert isinstance(job.error, DownloadError)


async def test_downloads_count_among_the_jobs_that_may_wait(filled: Hub, settings: Settings, rehearsal: str):
    few = settings.model_copy(update={"queue_size": 2})
    lacking = Planned((), downloads=(Download(model=BASE),))
    async with Jobs(LocalBackend(few, rehearsal), few) as jobs:
        filled.talks.clear()
        for _ in range(2):
            jobs.submit(lacking)
        with pytest.raises(QueueFull, match="2 jobs wait already"):
            jobs.submit(lacking)
        filled.talks.set()


async def test_closing_the_queue_ends_a_download(filled: Hub, settings: Settings, rehearsal: str):
    filled.faults += [FOREVER]
    with anyio.fail_after(PATIENCE):
        async with Jobs(LocalBackend(settings, rehearsal), settings) as jobs:
            download = prepare(jobs, settings)
            await reached(lambda: download.progress.fraction > 0)
    assert download.state is State.CANCELLED
    assert fetched() == []


async def test_an_agent_sees_a_download_and_can_stop_it(filled: Hub, settings: Settings, rehearsal: str):
    filled.faults += [FOREVER]
    async with Client(create_server(settings, lambda given: LocalBackend(given, rehearsal))) as client:
        wanted = {"model": BASE, "task": "layers", "wait_seconds": 0}
        handle = facts_of(await client.call_tool("prepare_model", wanted))
        assert handle["status"] == "downloading"
        waiting = {"job_ids": [handle["job_id"]], "wait_seconds": 0.1}
        with anyio.fail_after(PATIENCE):
            while not (found := facts_of(await client.call_tool("get_job", waiting))["jobs"][0])["progress"]:
                pass
        assert "downloading realisticVisionV51_v51VAE.safetensors" in found["message"]
        drawn = await client.call_tool("generate_transparent", {"prompt": "steps 1", "options": {"model": "pocket"}})
        assert facts_of(drawn)["status"] == "done"
        listed = await client.call_tool("list_jobs", {"status": "downloading"})
        assert [line["job_id"] for line in facts_of(listed)["jobs"]] == [handle["job_id"]]
        assert facts_of(await client.call_tool("server_status", {}))["running"] == []
        stopped = await client.call_tool("cancel_job", {"job_id": handle["job_id"]})
        assert text_of(stopped) == f"{handle['job_id']} is cancelled."


async def test_a_server_that_starts_removes_partial_files_that_were_given_up(
    hub: Hub, settings: Settings, rehearsal: str
):
    blobs = Path(constants.HF_HUB_CACHE) / "models--me--mine" / "blobs"
    old, young = (write(blobs / f"{name}{leftovers.PART}", b"half") for name in ("old", "young"))
    os.utime(old, times=(time.time() - 2 * leftovers.STALE_PART,) * 2)
    async with Client(create_server(settings, lambda given: LocalBackend(given, rehearsal))):
        await reached(lambda: not old.exists())
    assert young.exists()
