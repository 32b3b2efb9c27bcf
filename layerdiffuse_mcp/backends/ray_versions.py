"""Which nodes of a Ray cluster have the versions that this server has: each is asked once.

    survey = Survey(ray)
    nodes = survey.look(60.0)     # those that may draw; waits for answers, but not for ever
    survey.differing              # {"f00...": "Ray is 2.60.0 here and 2.59.0 on node gpu-7"}

A node that does not answer, for it is about to come or to go, holds nobody up: it is none that may draw, and is heard
or asked again at the next look.
"""

import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from layerdiffuse_mcp.backends.nodes import name_of
from layerdiffuse_mcp.backends.ray_actor import on_node

PAUSE = 0.2
VERSIONS: dict[str, tuple[Callable[..., str], tuple[str, ...]]] = {
    "Python": (platform.python_version, ()),
    "Ray": (version, ("ray",)),
    "layerdiffuse-mcp": (version, ("layerdiffuse-mcp",)),
}
"""What has to be the same everywhere: functions that each Python has, for a node may lack our package."""


class Survey:
    """What is known of a cluster's nodes.

    `differing`: what is not the same there, in words, by their ids.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._same: set[str] = set()
        self.differing: dict[str, str] = {}
        self._asked: dict[str, list[Any]] = {}

    def look(self, seconds: float = 0.0) -> list[Mapping[str, Any]]:
        """The living nodes that have the same versions, as Ray lists them.

        Args:
            seconds: for how long to wait for those that have not answered yet.
        """
        until = time.monotonic() + seconds
        while True:
            alive = {node["NodeID"]: node for node in self._ray.nodes() if node["Alive"]}
            self._asked = {name: asked for name, asked in self._asked.items() if name in alive}
            unknown = alive.keys() - self._same - self.differing.keys()
            for name in unknown:
                self._hear(alive[name])
            if not unknown or time.monotonic() >= until:
                return [node for name, node in alive.items() if name in self._same]
            time.sleep(PAUSE)

    def _hear(self, node: Mapping[str, Any]) -> None:
        """Ask a node, or note what it has answered by now."""
        name = node["NodeID"]
        if name not in self._asked:
            there = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": on_node(name)}
            self._asked[name] = [
                self._ray.remote(ask).options(**there).remote(*given) for ask, given in VERSIONS.values()
            ]
        answers = self._asked[name]
        if self._ray.wait(answers, num_returns=len(answers), timeout=0)[1]:
            return
        try:
            found = [self._said(answer) for answer in answers]
        except self._ray.exceptions.RayError:  # it is going, or not everybody knows yet that it is there
            del self._asked[name]
            return
        differing = [
            f"{what} is {ask(*given)} here and {there} on node {name_of(node)}"
            for (what, (ask, given)), there in zip(VERSIONS.items(), found, strict=True)
            if there != ask(*given)
        ]
        if differing:
            self.differing[name] = "; ".join(differing)
        else:
            self._same.add(name)

    def _said(self, answer: Any) -> str:
        try:
            return self._ray.get(answer)
        except PackageNotFoundError:
            return "missing"
