"""Workers on the nodes of a Ray cluster, or of one that is started for this server on this machine.

    backend = RayBackend(Settings(backend="ray", ray_address="10.0.0.5:6379"))

Each worker is an actor with the program of a local one inside, spoken to with the same messages: what is asked, given
pictures and drawn ones travel as bytes, and no disk is shared. Nodes may come and go. A task whose node vanishes fails
with `WorkerLost`, upon which the queue has it run elsewhere. Ray is imported when the first worker is needed; its own
authentication is left as it is. Versions have to be the same everywhere.
"""

import asyncio
import contextlib
import importlib
import itertools
import logging
import math
import os
import signal
import socket
import textwrap
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import anyio
import anyio.to_thread

from layerdiffuse_mcp.api.outcome import Outcome
from layerdiffuse_mcp.api.plan import Download, Inputs, Task
from layerdiffuse_mcp.backends.backend import Report, WorkerState
from layerdiffuse_mcp.backends.nodes import Slot, slots
from layerdiffuse_mcp.backends.process import WorkerProcess
from layerdiffuse_mcp.backends.ray_actor import Node, fetched, started
from layerdiffuse_mcp.backends.ray_versions import Survey
from layerdiffuse_mcp.backends.workers import CANCEL_GRACE, Worker, Workers
from layerdiffuse_mcp.engine.startup import ENGINE
from layerdiffuse_mcp.errors import LayerDiffuseError, WorkerDied, WorkerLost
from layerdiffuse_mcp.installed import remedy
from layerdiffuse_mcp.settings import Settings
from layerdiffuse_mcp.wording import short

LOOK = 2.0
"""Seconds between two looks at which nodes there are."""
ANSWER = 60.0
"""Seconds in which nodes have to say which versions they have for it to be heard when the server connects."""
AWAY = 60.0
"""Seconds for which a node gets no work once a worker there could not be reached any more."""
REASON = 400
"""Most characters of what Ray says that are repeated."""
REACH = 5.0
"""Seconds in which the head of a cluster has to take a connection."""
logger = logging.getLogger(__name__)


class RayBackend(Workers):
    """Runs tasks in actors, one at a time in each.

    Args:
        settings: handed to the workers; `ray_address` names the cluster.
        engine: the class that they run, as `module:name`.
        cancel_grace: seconds a cancelled task gets to reach its next step.
    """

    def __init__(self, settings: Settings, engine: str = ENGINE, cancel_grace: float = CANCEL_GRACE) -> None:
        super().__init__()
        self._settings, self._engine, self._cancel_grace = settings, engine, cancel_grace
        self._ray: Any = None
        self._slots: dict[Slot, int] = {}
        self._lost: dict[str, float] = {}
        self._leaving: list[Worker] = []
        self._numbers = itertools.count()
        self._connecting = anyio.Lock()
        self._closed = threading.Event()

    @property
    def workers(self) -> int:
        """How many tasks may run at once; one before it is connected, and while there is no node."""
        return max(1, len(self._workers))

    def state(self) -> list[WorkerState]:
        """See `Backend.state`; there is always one, to which a task can be given."""
        return super().state() or [WorkerState("stopped", None, {})]

    async def warm_up(self) -> None:
        """Connect, and start all workers."""
        await self._connected()
        async with anyio.create_task_group() as tasks:
            for worker in self._workers.values():
                tasks.start_soon(worker.living)

    async def run(self, task: Task, inputs: Inputs, report: Report, worker: int | None = None) -> Outcome:
        """Run one task; see `Backend.run`.

        Raises:
            WorkerLost: its node vanished; no further task is given to that.
            LayerDiffuseError: there is no such cluster, no node in it, or the versions differ.
        """
        await self._connected()
        if not self._workers:
            raise WorkerDied(
                "No node of the Ray cluster can draw now: none has a GPU or CPUs to spare. Start one with "
                "`ray start --address=...`, then repeat the call."
            )
        chosen = worker if worker in self._workers else next(iter(self._workers))
        try:
            return await self._workers[chosen].run(task, inputs, report)
        except WorkerLost:
            for node in [slot.node for slot, number in self._slots.items() if number == chosen]:
                self._lost[node] = time.monotonic()  # Ray may take it for alive some time longer
                self._forget(node)
            raise

    async def prepare(self, downloads: Sequence[Download], report: Report) -> None:
        """Fetch models on every node; `report` hears of each of them, by its name.

        Raises:
            LayerDiffuseError: a node could not fetch them; the others have.
        """
        await self._connected()
        nodes = list({slot.node: Node(slot.node, slot.name) for slot in self._slots}.values())
        await fetched(self._ray, nodes, self._given, downloads, report)

    async def close(self) -> None:
        """End all workers, and leave the cluster; one that was started for this server ends."""
        self._closed.set()
        with anyio.CancelScope(shield=True):
            async with self._connecting:  # what is being connected has to be before it can be left
                self._workers.update({-1 - index: worker for index, worker in enumerate(self._leaving)})
                await super().close()
                if self._ray is not None:
                    await anyio.to_thread.run_sync(self._leave)

    @property
    def _given(self) -> dict[str, Any]:
        return {name: getattr(self._settings, name) for name in self._settings.model_fields_set}

    async def _connected(self) -> None:
        async with self._connecting:
            if self._ray is None and not self._closed.is_set():
                with anyio.CancelScope(shield=True):
                    self._ray, survey, nodes = await anyio.to_thread.run_sync(_connect, self._settings)
                    _keep_handlers()
                    self._placed(nodes)
                    given = asyncio.get_running_loop(), survey
                    self._watcher = threading.Thread(target=self._watch, args=given, daemon=True, name="watch nodes")
                    self._watcher.start()

    def _leave(self) -> None:
        self._watcher.join()  # Ray's core does not survive being asked while it is left
        self._ray.shutdown()

    def _watch(self, loop: asyncio.AbstractEventLoop, survey: Survey) -> None:
        """Look which nodes there are, for as long as it is connected."""
        told = set[str]()
        while not self._closed.wait(LOOK):
            try:
                nodes = survey.look()
            except Exception as error:  # noqa: BLE001 - whatever it is, the cluster may come back
                logger.warning("the Ray cluster does not say which nodes it has: %s", short(str(error)))
                continue
            for difference in survey.differing.keys() - told:
                logger.warning("%s: it gets no work", survey.differing[difference])
            told.update(survey.differing)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._placed, nodes)

    def _placed(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        """Have a worker wherever there is room for one, as many as may be, and none on a node that is gone."""
        since = time.monotonic() - AWAY
        there = [node for node in nodes if self._lost.get(node["NodeID"], -math.inf) <= since]
        for gone in {slot.node for slot in self._slots} - {node["NodeID"] for node in there}:
            self._forget(gone)
        most = math.inf if self._settings.workers == "auto" else self._settings.workers
        for slot in slots(there, self._settings):
            if slot not in self._slots and len(self._slots) < most:
                number = self._slots[slot] = next(self._numbers)
                self._workers[number] = Worker(number, partial(self._start, slot), self._cancel_grace)

    def _forget(self, node: str) -> None:
        """Give a node that is gone no further work; what ran there hears of it from Ray."""
        for slot in [slot for slot in self._slots if slot.node == node]:
            self._leaving.append(self._workers.pop(self._slots.pop(slot)))
        self._leaving = [worker for worker in self._leaving if worker.state().phase != "stopped"]

    async def _start(self, slot: Slot) -> WorkerProcess:
        return started(self._ray, slot, self._given, self._engine)


def _connect(settings: Settings) -> tuple[Any, Survey, list[Mapping[str, Any]]]:
    """Ray, connected, what is known of the nodes of its cluster, and those that may draw.

    Raises:
        LayerDiffuseError: it is not installed, there is no such cluster, no node answers, or versions differ.
    """
    address = settings.ray_address
    if address and "://" in address:
        raise LayerDiffuseError(
            f"{short(address)} is an address of Ray's client, which is not used here. Join this machine to the cluster "
            "(`ray start --address=HOST:PORT --num-cpus=0`), and set LAYERDIFFUSE_RAY_ADDRESS=HOST:PORT."
        )
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise LayerDiffuseError(
            f"Ray is not installed here ({error}): {remedy('ray')}, or set LAYERDIFFUSE_BACKEND=local."
        ) from error
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # once it is left, a late question starts no other cluster
    try:
        _reach(address)
        ray.init(address, configure_logging=False, log_to_driver=False, include_dashboard=False)
        survey = Survey(ray)
        nodes = survey.look(ANSWER)
    except Exception as error:
        ray.shutdown()
        raise LayerDiffuseError(f"The Ray cluster {short(address or '')} cannot be used: {_reason(error)}") from error
    if survey.differing:
        ray.shutdown()
        differing = "; ".join(survey.differing.values())
        raise LayerDiffuseError(f"{differing}. Install the same versions everywhere, then restart the node.")
    if not nodes:
        ray.shutdown()
        raise LayerDiffuseError(
            f"No node of the Ray cluster answers within {ANSWER:g} s. See `ray status`, call again."
        )
    return ray, survey, nodes


def _keep_handlers() -> None:
    """Have signals do what they did before: Ray's core puts handlers of its own beneath Python's."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            if (handler := signal.getsignal(number)) is not None:
                signal.signal(number, handler)


def _reach(address: str | None) -> None:
    """See that somebody listens there, which Ray itself tries for minutes; raises OSError."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), REACH).close()


def _reason(error: Exception) -> str:
    """What Ray says of a failure, on one line, without the traceback that it may hold."""
    said = str(error.__cause__ or error).rpartition("Error: ")[2]
    return textwrap.shorten(said, REASON, placeholder=" ...") or type(error).__name__
