"""The real thing: the program as users run it, over real pipes, drawing with the embedded model."""

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters

Serve = Callable[..., StdioServerParameters]
PYTHON_PATH = os.pathsep.join(filter(None, sys.path))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


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
        environment |= {name: os.environ[name] for name in ("OMP_NUM_THREADS", "PATH")}
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


@pytest.fixture(scope="module")
async def client(connect: Callable[..., AbstractAsyncContextManager[Client]]) -> AsyncIterator[Client]:
    """One client on one server for a whole module, so that its model is loaded once."""
    async with connect() as opened:
        yield opened
