"""Fixtures that several rooms' tests share."""

import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

# One thread: a second costs these narrow networks more than it does. What threads may share is tested with two. They
# sleep while they wait, as in the product (startup.DEFAULTS). Torch looks at both once, when it is imported.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}

from layerdiffuse_mcp.imports import uncollected
from layerdiffuse_mcp.settings import Settings
from tests.memory import MemoryLimit

PROGRAMS = Path(__file__).parent / "programs"


LONG = {"end_to_end", "engine", "golden", "training"}
"""Folders of files that take long: these are begun first, so that no process ends long after the others."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", help="of the tests of a device (default: cuda) and of the golden cases (default: cpu)")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the one process above all others
        config.pluginmanager.register(MemoryLimit(), "memory-limit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.relative_to(PROGRAMS.parent).parts[0] not in LONG)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported for all tests stays: going through it at each look for garbage takes a tenth of the run."""
    gc.set_threshold(10 * gc.get_threshold()[0])  # two to four percent of what tests compute
    with uncollected():
        return (yield)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def two_threads() -> Iterator[None]:
    """As many as work side by side at least in the product, here and in programs that start: what they share shows."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "2")
        patch.setattr("layerdiffuse_mcp.engine.device.threads.ALL", 2)
        torch.set_num_threads(2)
        yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Leaves the user's cache and state folders and settings alone."""
    with TemporaryDirectory(prefix="ld-") as state, pytest.MonkeyPatch.context() as patch:  # a socket's path is short
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", state)
        for name in Settings.model_fields:
            patch.delenv(f"LAYERDIFFUSE_{name.upper()}", raising=False)
        yield


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings that leave this machine's own folders alone."""
    return settings_in(tmp_path)


def settings_in(folder: Path) -> Settings:
    """Settings that read and write below a folder alone."""
    return Settings(output_dir=folder / "out", read_dirs=(folder,), models_dir=folder / "models", warm_up=False)


@pytest.fixture(scope="session")
def rehearsal() -> Iterator[str]:
    """Name of an engine that obeys its prompt, importable in worker processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PROGRAMS)
        yield "rehearsal:Engine"
