"""Where workers run in a Ray cluster: one a GPU, or where there is none one a node, or for each so many of its CPUs.

slots(ray.nodes(), settings)      # (Slot(node="f00...", name="gpu-7", gpus=1), ...)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from layerdiffuse_mcp.backends.places import Place
from layerdiffuse_mcp.settings import Settings


@dataclass(frozen=True)
class Slot:
    """Room for a worker: the `index`-th of a node, which Ray knows by its id and people by its name."""

    node: str
    name: str
    index: int
    gpus: int
    cpus: int
    place: Place


def slots(nodes: Iterable[Mapping[str, Any]], settings: Settings) -> tuple[Slot, ...]:
    """Room for workers, the first of each node first.

    Args:
        nodes: as Ray lists them.
    """
    alive = sorted((node for node in nodes if node["Alive"]), key=lambda node: (name_of(node), node["NodeID"]))
    with_gpus = [node for node in alive if node["Resources"].get("GPU", 0) >= 1]
    if settings.device in ("auto", "cuda") and with_gpus:
        rooms = [_rooms(node, int(node["Resources"]["GPU"]), gpus=1) for node in with_gpus]
    else:
        rooms = [_rooms(node, _by_cpus(node, settings)) for node in alive]
    return tuple(slot for rank in zip_longest(*rooms) for slot in rank if slot is not None)


def name_of(node: Mapping[str, Any]) -> str:
    """What people call a node: the name that it was given, else that of its machine."""
    given = node["NodeName"]
    return node["NodeManagerHostname"] if given in ("", node["NodeManagerAddress"]) else given


def _cpus(node: Mapping[str, Any]) -> int:
    return int(node["Resources"].get("CPU", 0))


def _by_cpus(node: Mapping[str, Any], settings: Settings) -> int:
    return _cpus(node) // settings.ray_cpus if settings.ray_cpus else min(1, _cpus(node))


def _rooms(node: Mapping[str, Any], count: int, gpus: int = 0) -> list[Slot]:
    if not count:
        return []
    threads = max(1, _cpus(node) // count)
    place = Place(threads=threads, sharing=1 if gpus else count)
    cpus = 0 if gpus else threads
    return [Slot(node["NodeID"], name_of(node), index, gpus, cpus, place) for index in range(count)]
