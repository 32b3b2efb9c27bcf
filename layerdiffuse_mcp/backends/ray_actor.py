"""An actor of a Ray cluster as the server sees it: a worker's process, and the connection to it.

process = started(ray, slot, given, engine)       # a process.WorkerProcess
await fetched(ray, nodes, given, downloads, report)     # models, on each node
"""

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from layerdiffuse_mcp.api.outcome import Progress
from layerdiffuse_mcp.api.plan import Download
from layerdiffuse_mcp.backends.backend import Report
from layerdiffuse_mcp.backends.messages import Failed, Run
from layerdiffuse_mcp.backends.nodes import Slot
from layerdiffuse_mcp.backends.process import WorkerProcess
from layerdiffuse_mcp.errors import LayerDiffuseError, WorkerDied, WorkerLost
from layerdiffuse_mcp.wording import short

ROOM = 60.0
"""Seconds in which a node has to find room for a worker."""
LOOK = 0.2
NOTICE = 3.0
"""Seconds that Ray gets to say that the node of a worker that ended is gone."""


@dataclass(frozen=True)
class Node:
    """As Ray knows it, and as people do."""

    id: str
    name: str


def started(ray: Any, slot: Slot, given: Mapping[str, Any], engine: str) -> WorkerProcess:
    """A new worker in a slot; it starts while the server goes on.

    Args:
        given: the settings that were set where this server runs.
    """
    actor = _Actor(ray, slot, given, engine)
    return WorkerProcess(actor, actor, actor.ended, log=f"Ray's, on node {slot.name}")


class _Actor:
    """What `WorkerProcess` takes for a process and for the connection to it."""

    pid = None

    def __init__(self, ray: Any, slot: Slot, given: Mapping[str, Any], engine: str) -> None:
        from layerdiffuse_mcp.backends.ray_worker import HEAR, EngineActor

        self._ray, self._node = ray, Node(slot.node, slot.name)
        self._killed = False
        self._number: int | None = None
        self._gone = False
        actor = ray.remote(concurrency_groups={HEAR: 1})(EngineActor).options(
            num_gpus=slot.gpus,
            num_cpus=slot.cpus,
            scheduling_strategy=on_node(slot.node),
        )
        self._actor = actor.remote(given, engine, slot.place, slot.name)
        self._hear = self._actor.hear.options(concurrency_group=HEAR)
        self._messages = self._listen()

    def send(self, message: object, /) -> None:
        self._number = getattr(message, "number", self._number)
        contents: dict[str, bytes] = {}
        if isinstance(message, Run):
            contents = {name: Path(path).read_bytes() for name, path in message.inputs.items()}
            message = Run(message.number, message.task, {})
        self._hear.remote(message, contents)

    def recv(self) -> Any:
        if self._gone:
            raise EOFError
        try:
            return next(self._messages)
        except StopIteration:
            raise EOFError from None
        except self._ray.exceptions.RayError as error:  # Ray may have lost what it said at last, that it had begun too
            self._gone = True
            return Failed(self._number or 0, self._why(error))

    def close(self) -> None: ...

    def kill(self) -> None:
        self._killed = True
        self._ray.kill(self._actor)

    def join(self, timeout: float | None = None) -> None: ...

    def is_alive(self) -> bool:
        return not self._killed

    def _listen(self) -> Generator[object]:
        self._ray.get(self._actor.__ray_ready__.remote(), timeout=ROOM)
        while True:
            for batch in self._actor.listen.options(num_returns="streaming").remote():
                for message in self._ray.get(batch):
                    if message is None:
                        return
                    yield message

    def _why(self, error: Exception) -> LayerDiffuseError:
        """What Ray's error means: that there was no room for it, its node is gone, or it ended alone."""
        known = self._ray.exceptions
        if isinstance(error, known.GetTimeoutError):
            return WorkerDied(
                f"Node {self._node.name} has no room for a worker: others use its GPUs or CPUs. Wait for them, or set "
                "LAYERDIFFUSE_WORKERS to fewer."
            )
        unreachable = isinstance(error, known.ActorUnavailableError | known.ActorUnschedulableError)
        if unreachable or (not self._killed and self._node_ends()):
            return WorkerLost(f"Node {self._node.name} of the Ray cluster went away while it ran this job.")
        return self.ended()

    def ended(self) -> WorkerDied:
        """That it ended for a reason of its own."""
        return WorkerDied(
            f"The worker on node {self._node.name} ended while it ran this job; Ray's logs there say why. If it ran"
            " out of memory, ask for a smaller size or count. The next job gets a new worker."
        )

    def _node_ends(self) -> bool:
        """Whether its node is gone, or is so before long."""
        until = time.monotonic() + NOTICE
        while time.monotonic() < until:
            if not any(node["Alive"] and node["NodeID"] == self._node.id for node in self._ray.nodes()):
                return True
            time.sleep(LOOK)
        return False


async def fetched(
    ray: Any, nodes: Sequence[Node], given: Mapping[str, Any], downloads: Sequence[Download], report: Report
) -> None:
    """Fetch models on all nodes at once; `report` hears of each by its name, with the share of all that is done.

    Raises:
        LayerDiffuseError: of the first node that could not; the others go on to their end.
    """
    from layerdiffuse_mcp.backends.ray_worker import fetch

    done = dict.fromkeys(nodes, 0.0)
    errors: list[LayerDiffuseError] = []

    def say(node: Node, fraction: float, message: str) -> None:
        done[node] = max(done[node], fraction)
        report(Progress(fraction=sum(done.values()) / len(done), message=f"{node.name}: {message}"))

    async def on(node: Node) -> None:
        there = ray.remote(fetch).options(
            num_cpus=0, num_returns="streaming", max_retries=0, scheduling_strategy=on_node(node.id)
        )
        said = there.remote(given, downloads)
        try:
            async for answer in said:
                match await answer:
                    case Progress(fraction=fraction, message=message):
                        say(node, fraction, message)
                    case LayerDiffuseError() as error:
                        errors.append(type(error)(f"On node {node.name}: {error}"))
                    case _:
                        say(node, 1.0, "done")
        except ray.exceptions.RayError as error:
            errors.append(WorkerLost(f"Node {node.name} went away while it fetched models ({short(str(error))})."))
        except anyio.get_cancelled_exc_class():
            ray.cancel(said, force=True)  # what it has by now stays for the next time
            raise

    async with anyio.create_task_group() as tasks:
        for node in nodes:
            tasks.start_soon(on, node)
    if errors:
        raise errors[0]


def on_node(node: str) -> Any:
    """Ray's word for: there and nowhere else."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # pyright: ignore[reportMissingImports] - an extra

    return NodeAffinitySchedulingStrategy(node, soft=False)
