"""One server for a whole module, in memory, whose engine obeys its prompt; and files that it may read."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from layerdiffuse_mcp.images.alpha import Bytes
from layerdiffuse_mcp.images.png import png_bytes
from layerdiffuse_mcp.settings import Settings
from tests.conftest import PROGRAMS
from tests.fuzz.serving import Server, serve


@pytest.fixture(scope="module")
def disc() -> Bytes:
    """A disc with a soft edge, (24, 32, 4)."""
    rows, columns = np.mgrid[:24, :32]
    alpha = np.clip(255 - 24 * (np.hypot(rows - 12, columns - 16) - 6), 0, 255)
    return np.dstack([np.full_like(alpha, shade) for shade in (200, 40, 90)] + [alpha]).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, disc: Bytes) -> Path:
    """A folder that may be read, with `disc.png` and `text.txt` in it."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "disc.png").write_bytes(png_bytes(disc, recipe={"format": 1, "request": {"prompt": "a disc"}}))
    (folder / "text.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def own_settings(folder: Path) -> Iterator[Settings]:
    """Settings that leave this machine's own folders alone, for a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PROGRAMS)
        for name in Settings.model_fields:
            patch.delenv(f"LAYERDIFFUSE_{name.upper()}", raising=False)
        yield Settings(output_dir=folder / "out", read_dirs=(folder,), models_dir=folder / "models", warm_up=False)


@pytest.fixture(scope="module")
def server(own_settings: Settings) -> Iterator[Server]:
    with serve(own_settings) as server:
        yield server
