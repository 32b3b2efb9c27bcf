"""An engine on small models of both families, shared by the tests of a module."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.settings import Settings
from tests.narrow import write_models
from tests.saving import Engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `models/` and a picture `given.png`, 56 x 72 pixels, RGBA."""
    folder = tmp_path_factory.mktemp("engine")
    write_models(folder / "models")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (72, 56, 4), dtype=np.uint8)).save(folder / "given.png")
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    """The engine; what it makes is written below `folder`."""
    engine = Engine(Settings(output_dir=folder / "out", models_dir=folder / "models", device="cpu"))
    yield engine
    engine.close()
