"""The real thing: the program as users run it, over real pipes, drawing with the embedded model."""

import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import psutil
import pytest
from mcp import Client, StdioServerParameters

Serve = Callable[..., StdioServerParameters]
PASSED_ON = ("OMP_NUM_THREADS", "PATH", "XDG_CACHE_HOME", "XDG_STATE_HOME")
PYTHON_PATH = os.pathsep.join(filter(None, sys.path))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "own_server(**settings): the module's server shares no worker, and reads the models of its folder"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a module's server may read and write."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def program(folder: Path) -> Serve:
    """The command that serves, with settings as `LAYERDIFFUSE_*` variables; it shares no workers unless they say so."""

    def parameters(**settings: object) -> StdioServerParameters:
        given = {
            "share_workers": "off",
            "output_dir": folder / "out",
            "read_dirs": folder,
            "models_dir": folder / "models",
            **settings,
        }
        environment = {f"LAYERDIFFUSE_{name.upper()}": str(value) for name, value in given.items()}
        environment |= {name: os.environ[name] for name in PASSED_ON}
        environment["PYTHONPATH"] = PYTHON_PATH
        return StdioServerParameters(command=sys.executable, args=["-m", "layerdiffuse_mcp"], env=environment)

    return parameters


@pytest.fixture(scope="module")
def connect(program: Serve) -> Callable[..., AbstractAsyncContextManager[Client]]:
    """Opens a client on a new server process."""

    @asynccontextmanager
    async def open_client(mode: str = "auto", **settings: object) -> AsyncIterator[Client]:
        async with Client(program(**settings), mode=mode) as client:
            yield client

    return open_client


@pytest.fixture(scope="session")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """Settings of servers that share one worker, as servers of one user do: it starts and loads its model once."""
    yield {"share_workers": "auto", "models_dir": tmp_path_factory.mktemp("no-models")}
    state = os.environ["XDG_STATE_HOME"]
    for process in psutil.process_iter(["cmdline"]):
        if any(state in argument for argument in process.info["cmdline"] or ()):
            process.kill()


@pytest.fixture(scope="module")
async def client(
    request: pytest.FixtureRequest,
    connect: Callable[..., AbstractAsyncContextManager[Client]],
    sharing: dict[str, object],
) -> AsyncIterator[Client]:
    """One client on one server for a whole module, which may mark itself to have a server of its own."""
    own = request.node.get_closest_marker("own_server")
    async with connect(**(own.kwargs if own else sharing)) as opened:
        yield opened
