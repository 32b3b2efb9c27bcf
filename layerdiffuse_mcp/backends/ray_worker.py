"""What runs on the nodes of a Ray cluster: a worker's program inside an actor, and the fetching of models.

    worker = ray.remote(concurrency_groups={HEAR: 1})(EngineActor).remote(settings, engine, place, node)
    worker.hear.options(concurrency_group=HEAR).remote(Run(...), contents)    # messages.py; given pictures as bytes
    worker.listen.options(num_returns="streaming").remote()                   # what the worker says, as it says it

It does not import Ray. A node has folders of its own: what its environment says of them comes before the server's.
"""

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, cast

from layerdiffuse_mcp.api.outcome import Progress
from layerdiffuse_mcp.api.plan import Download
from layerdiffuse_mcp.backends.messages import Done, Failed, Run, State, Step
from layerdiffuse_mcp.backends.places import Place
from layerdiffuse_mcp.errors import LayerDiffuseError
from layerdiffuse_mcp.settings import Settings, variable

HEAR = "hear"
"""The group of calls that are heard, in their order, while another is listened to."""
LISTEN = 10_000
"""Messages of one listener; Ray keeps a note of each for as long as it runs."""
GATHER = 0.2
"""Seconds for which steps are gathered: what the server pays is mostly by message."""
OF_A_NODE = ("models_dir", "max_memory")
"""Settings that a node's own environment has the last word on."""


def settings_here(given: Mapping[str, Any]) -> Settings:
    """The server's settings as they hold on this node.

    Args:
        given: those that were set where the server runs; of the others this node's environment decides.
    """
    own = {name for name in OF_A_NODE if os.environ.get(variable(name))}
    return Settings(**{name: value for name, value in given.items() if name not in own})


class EngineActor:
    """One engine, one request at a time.

    Args:
        given: the settings that were set where the server runs.
        engine: the engine's class as `module:name`.
        place: its share of the node.
        node: what people call that.
    """

    def __init__(self, given: Mapping[str, Any], engine: str, place: Place, node: str) -> None:
        from layerdiffuse_mcp.backends.worker import Worker

        os.environ.update(place.environment)
        settings = place.settings(settings_here(given))
        self._way = _Way(node)
        worker = Worker(settings)
        worker.add(cast("Any", self._way))

        def work() -> None:
            try:
                worker.serve(engine)
            finally:
                self._way.said.put(None)

        threading.Thread(target=work, name="engine", daemon=True).start()

    def hear(self, message: object, contents: Mapping[str, bytes]) -> None:
        """Take in a message; `contents` are the given pictures of a `Run`, by their SHA-256."""
        if isinstance(message, Run):
            message = replace(message, inputs=self._way.keep(contents))
        self._way.heard.put(message)

    def listen(self) -> Generator[list[object]]:
        """What the worker says, several messages at once where they have gathered; ends with None, or a new call."""
        for _ in range(LISTEN):
            messages, until = [self._way.said.get()], time.monotonic() + GATHER
            with contextlib.suppress(Empty):
                while messages[-1] is not None:
                    waits = max(0.0, until - time.monotonic()) if isinstance(messages[-1], Step) else 0.0
                    messages.append(self._way.said.get(timeout=waits) if waits else self._way.said.get_nowait())
            yield messages
            if messages[-1] is None:
                return


class _Way:
    """The worker's end of the way to the server."""

    def __init__(self, node: str) -> None:
        self._node = node
        self.heard: SimpleQueue[object] = SimpleQueue()
        self.said: SimpleQueue[object] = SimpleQueue()
        self._folder: str | None = None

    def keep(self, contents: Mapping[str, bytes]) -> dict[str, Path]:
        """Files with these contents, until the request is over."""
        if not contents:
            return {}
        self._folder = tempfile.mkdtemp(prefix="layerdiffuse-")
        paths = {name: Path(self._folder, name) for name in contents}
        for name, path in paths.items():
            path.write_bytes(contents[name])
        return paths

    def send(self, message: object, /) -> None:
        match message:
            case State(engine):
                message = State({"node": self._node, **engine})
            case Failed(number, error):
                message = Failed(number, type(error)(f"On node {self._node}: {error}"))
            case _:
                pass
        if isinstance(message, Done | Failed) and self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        self.said.put(message)

    def recv(self) -> object:
        return self.heard.get()

    def close(self) -> None: ...


def fetch(given: Mapping[str, Any], downloads: Sequence[Download]) -> Generator[Progress | LayerDiffuseError | None]:
    """Fetch what this node lacks of these models: progress, then None, or what was wrong."""
    from layerdiffuse_mcp.hub.download import prepare_all

    settings, said = settings_here(given), SimpleQueue[Progress | LayerDiffuseError | None]()

    def work() -> None:
        end = None
        try:
            prepare_all(downloads, settings, said.put)
        except LayerDiffuseError as error:
            end = type(error)(str(error))
        finally:
            said.put(end)

    threading.Thread(target=work, daemon=True, name="fetch").start()
    while isinstance(progress := said.get(), Progress):
        yield progress
    yield progress
