"""A real Ray cluster under the server: two nodes with stores and folders of their own, and none to share."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from huggingface_hub import constants
from mcp import Client
from PIL import Image

from layerdiffuse_mcp.api.outcome import Outcome, Progress
from layerdiffuse_mcp.api.plan import Download, Planned
from layerdiffuse_mcp.backends.ray import RayBackend
from layerdiffuse_mcp.errors import LayerDiffuseError, WorkerDied
from layerdiffuse_mcp.hub import catalog
from layerdiffuse_mcp.jobs.job import State
from layerdiffuse_mcp.jobs.queue import Jobs
from layerdiffuse_mcp.settings import Settings
from tests.conftest import PROGRAMS
from tests.end_to_end.conftest import PYTHON_PATH
from tests.hub.double import Hub
from tests.hub.files import weights
from tests.results import facts_of, text_of
from tests.tasks import drawing, planned

pytestmark = [pytest.mark.anyio, pytest.mark.extras, pytest.mark.filterwarnings("default")]

TOKEN = "0123456789abcdef0123456789abcdef"
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Of Ray: 0 has nodes listen on 127.0.0.1 instead of this machine's address."""
STORE = 80 * 2**20
NOTICED = {"health_check_period_ms": 1000}
"""Of Ray, which asks five times: a node that is gone is known to be so after as many seconds."""
LIMIT = 150
"""Seconds within which whatever is waited for has to come: most of them a busy machine's."""


class Nodes:
    """The cluster: a head that draws nothing, on which the server runs, and nodes that come and go by their names."""

    def __init__(self, folder: Path, hub: Hub) -> None:
        from ray.cluster_utils import Cluster

        self.folder, self.hub = folder, hub
        self.cluster = Cluster(
            initialize_head=True, head_node_args=self._as("head", num_cpus=0, _system_config=NOTICED)
        )
        self.address: str = self.cluster.address
        self._nodes: dict[str, Any] = {}

    def _as(self, name: str, **fields: Any) -> dict[str, Any]:
        return {"node_name": name, "object_store_memory": STORE, "include_dashboard": False, **fields}

    def add(self, name: str, python_path: str = "") -> None:
        own = self.folder / name
        environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, (python_path, PYTHON_PATH, str(PROGRAMS)))),
            "HF_HOME": str(own / "hub"),
            "HF_ENDPOINT": self.hub.url,
            "LAYERDIFFUSE_MODELS_DIR": str(own / "models"),
            "LAYERDIFFUSE_OUTPUT_DIR": "/nowhere",
        }
        self._nodes[name] = self.cluster.add_node(**self._as(name, num_cpus=1, env_vars=environment))

    def remove(self, name: str) -> None:
        """As if its machine were gone."""
        self.cluster.remove_node(self._nodes.pop(name), allow_graceful=False)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    short = tempfile.mkdtemp(prefix="ray-")  # names of sockets are short
    with pytest.MonkeyPatch.context() as patch, Hub() as hub:
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_TMPDIR": short, LOOPBACK: "0"}
        for name, value in own.items():
            patch.setenv(name, value)
        running = Nodes(tmp_path_factory.mktemp("nodes"), hub)
        try:
            for name in ("one", "two"):
                running.add(name)
            yield running
        finally:
            running.cluster.shutdown()
            shutil.rmtree(short, ignore_errors=True)


def of_ray(nodes: Nodes, **changed: str) -> dict[str, str]:
    """The environment in which a server finds the cluster."""
    return {
        "LAYERDIFFUSE_BACKEND": "ray",
        "LAYERDIFFUSE_RAY_ADDRESS": nodes.address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        LOOPBACK: "0",
        **changed,
    }


@asynccontextmanager
async def opened(nodes: Nodes, folder: Path, **fields: Any) -> AsyncIterator[RayBackend]:
    """A backend of this process, whose workers rehearse; used for LIMIT seconds at most."""
    settings = Settings(backend="ray", ray_address=nodes.address, output_dir=folder, **fields)
    backend = RayBackend(settings, "rehearsal:Engine", cancel_grace=1.0)
    try:
        with anyio.fail_after(LIMIT):
            yield backend
    finally:
        await backend.close()


async def obey(backend: RayBackend, prompt: str, report: Callable[[Progress], None] = lambda _: None) -> Outcome:
    return await backend.run(drawing(prompt), {}, report)


async def test_a_task_stops_at_its_next_step_and_one_that_does_not_is_killed(nodes: Nodes, tmp_path: Path):
    async with opened(nodes, tmp_path) as backend:
        before = await obey(backend, "steps 1")
        seen: list[Progress] = []
        with anyio.CancelScope() as scope:

            def hear(progress: Progress) -> None:
                seen.append(progress)
                scope.cancel()

            await obey(backend, "steps 1000", hear)
        assert seen[-1].fraction < 0.05  # steps are told several at once
        assert (await obey(backend, "steps 1")).warnings == before.warnings
        with anyio.move_on_after(0.5):
            await obey(backend, "stuck 600")
        assert (await obey(backend, "steps 1")).warnings != before.warnings
        with pytest.raises(WorkerDied, match="on node one ended"):
            await obey(backend, "killed")
        with pytest.raises(LayerDiffuseError, match="On node one: Too large"):
            await obey(backend, "refused")
        assert (await obey(backend, "steps 1")).warnings


async def test_models_stay_where_they_are(nodes: Nodes, tmp_path: Path):
    async with opened(nodes, tmp_path) as backend, Jobs(backend, Settings(output_dir=tmp_path)) as jobs:
        await backend.warm_up()
        for model in ("m0", "m1", "m0", "m1", "m1", "m0"):
            job = jobs.submit(planned("steps 1", model=model))
            await jobs.follow(job, LIMIT)
            assert job.state is State.DONE, job.error
        assert sorted(state.engine["loads"] for state in backend.state()) == [["m0"], ["m1"]]


async def test_models_are_fetched_on_every_node(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "ENDPOINT", nodes.hub.url)
    template = nodes.hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    settings = Settings(output_dir=tmp_path / "out", models_dir=tmp_path / "models")
    wanted = catalog.needed(catalog.find("realistic-vision-v51", settings), ())
    for file in wanted:
        nodes.hub.add(file.repo, file.path, weights(100_000))
    download = Download(model="realistic-vision-v51")
    said: list[Progress] = []
    async with opened(nodes, tmp_path / "out") as backend, Jobs(backend, settings) as jobs:
        job = jobs.submit(Planned((), downloads=(download,)))
        await jobs.follow(job, LIMIT)
        assert job.state is State.DONE, job.error
        await backend.prepare((download,), said.append)
    assert said[-1].fraction == 1.0
    for name in ("one", "two"):
        assert any(progress.message == f"{name}: {download.model} is on this machine" for progress in said)
        assert len(list((nodes.folder / name / "hub").rglob("*.safetensors"))) == len(wanted)


async def test_nodes_with_other_versions_are_refused_and_those_that_go_hold_nobody_up(
    nodes: Nodes, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    differing = tmp_path / "differing"
    for name in ("ray", "layerdiffuse_mcp"):
        information = differing / f"{name}-0.0.1.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.1\n")
    (differing / "sitecustomize.py").write_text("import platform; platform.python_version = lambda: '3.99.0'\n")
    nodes.add("brief")
    nodes.remove("brief")  # Ray takes it for alive some time longer
    async with opened(nodes, tmp_path) as backend:
        assert (await obey(backend, "steps 1")).warnings
        nodes.add("other", str(differing))
        while "other: it gets no work" not in caplog.text:
            await anyio.sleep(0.1)
        assert (await obey(backend, "steps 1")).warnings
    async with opened(nodes, tmp_path) as backend:
        with pytest.raises(LayerDiffuseError) as refusal:
            await backend.warm_up()
    nodes.remove("other")
    for difference in ("3.99.0 on node other", "Ray is", "layerdiffuse-mcp is", "0.0.1 on node other"):
        assert difference in str(refusal.value)
        assert difference in caplog.text


@pytest.fixture(scope="module")
async def client(nodes: Nodes, program: Callable[..., Any]) -> AsyncIterator[Client]:
    served = program(group_jobs="off")
    assert served.env is not None
    served.env |= of_ray(nodes)
    async with Client(served) as opened:
        yield opened


OUTPUT = {"wait_seconds": 600, "preview": False}
APPLE = {"prompt": "a red apple", "seed": 7, "size": "64x64", "options": {"steps": 2, "fit": "as_is"}}
NOW = {**APPLE, "output": OUTPUT}


def long(seed: int, steps: int = 150) -> dict[str, Any]:
    return {
        **APPLE,
        "seed": seed,
        "options": {"steps": steps, "fit": "as_is"},
        "output": {**OUTPUT, "wait_seconds": 0},
    }


async def answer(client: Client, tool: str, arguments: Mapping[str, Any]) -> Any:
    with anyio.fail_after(LIMIT):
        return await client.call_tool(tool, dict(arguments))


async def call(client: Client, tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return facts_of(await answer(client, tool, arguments))


async def workers(client: Client) -> dict[str, str]:
    """Phase by node, of those that have said where they are."""
    status = await call(client, "server_status", {})
    known = status.get("workers") or [{"phase": status["worker"], "engine": status["engine"]}]
    return {one["engine"]["node"]: one["phase"] for one in known if "node" in one["engine"]}


async def node_that_draws(client: Client, job: Mapping[str, Any], but: str | None = None) -> str:
    """The node that a job is on, of others than this one; fails where the job has ended."""
    with anyio.fail_after(LIMIT):
        while True:
            busy = [node for node, phase in (await workers(client)).items() if phase == "busy" and node != but]
            if busy:
                return busy[0]
            assert (await state_of(client, job))["status"] in ("queued", "running")
            await anyio.sleep(0.05)


def pixels(facts: Mapping[str, Any]) -> np.ndarray:
    with Image.open(facts["images"][0]["path"]) as picture:
        return np.array(picture)


async def ended(client: Client, job: Mapping[str, Any], seconds: float = LIMIT) -> Any:
    return await answer(client, "get_job", {"job_ids": [job["job_id"]], "wait_seconds": seconds, "preview": False})


async def at_once(times: int, function: Callable[[], Awaitable[object]]) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(times):
            tasks.start_soon(function)


async def state_of(client: Client, job: Mapping[str, Any]) -> dict[str, Any]:
    return facts_of(await ended(client, job, 0))["jobs"][0]


async def test_two_nodes_draw_at_once_the_same_picture_which_comes_home(client: Client, folder: Path):
    seen: list[float] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)

    drawn: list[dict[str, Any]] = []

    async def draw() -> None:
        with anyio.fail_after(LIMIT):
            result = await client.call_tool("generate_transparent", NOW, progress_callback=hear)
        drawn.append(facts_of(result))

    await draw()
    assert seen == sorted(seen)
    assert len(set(seen)) > 1
    await at_once(4, draw)
    assert all((pixels(one) == pixels(drawn[0])).all() for one in drawn)
    assert all(Path(one["images"][0]["path"]).is_relative_to(folder / "out") for one in drawn)
    assert set(await workers(client)) == {"one", "two"}


async def test_given_pictures_travel_there(client: Client):
    apple = await call(client, "generate_transparent", NOW)
    edit = {**NOW, "image": apple["images"][0]["path"], "options": {"steps": 2, "fit": "as_is", "strength": 0.2}}
    edited = await call(client, "edit_transparent", edit)
    kept, changed = pixels(apple).astype(int), pixels(edited).astype(int)
    assert kept.shape == changed.shape
    assert 0 < np.abs(kept - changed).mean() < 60


async def test_a_job_that_a_client_cancels_frees_its_worker(client: Client):
    job = await call(client, "generate_transparent", long(2))
    node = await node_that_draws(client, job)
    await answer(client, "cancel_job", {"job_id": job["job_id"]})
    with anyio.fail_after(LIMIT):
        while (await workers(client))[node] == "busy":
            await anyio.sleep(0.05)
    assert (await state_of(client, job))["status"] == "cancelled"


async def test_nodes_come_and_go(client: Client, nodes: Nodes):
    moved = await call(client, "generate_transparent", long(3))
    nodes.remove(await node_that_draws(client, moved))
    job = facts_of(await ended(client, moved))["jobs"][0]
    assert job["status"] == "done"
    again = await call(client, "generate_transparent", {**long(3), "output": OUTPUT})
    assert (pixels(job) == pixels(again)).all()

    nodes.add("three")
    with anyio.fail_after(LIMIT):
        while "three" not in await workers(client):
            await at_once(2, partial(call, client, "generate_transparent", NOW))
    lost = await call(client, "generate_transparent", long(4))
    first = await node_that_draws(client, lost)
    nodes.remove(first)
    second = await node_that_draws(client, lost, but=first)
    nodes.remove(second)
    result = await ended(client, lost)
    assert facts_of(result)["jobs"][0]["status"] == "failed"
    assert f"Node {second} of the Ray cluster went away" in text_of(result)

    result = await answer(client, "generate_transparent", NOW)
    assert result.is_error
    assert "No node of the Ray cluster can draw" in text_of(result)
    nodes.add("four")
    with anyio.fail_after(LIMIT):
        while (await answer(client, "generate_transparent", NOW)).is_error:
            await anyio.sleep(0.5)
    assert set(await workers(client)) == {"four"}
