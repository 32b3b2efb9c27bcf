"""Narrow bases, and engines that draw with them."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.settings import Settings
from tests.narrow import write_lora, write_models
from tests.saving import Engine

COPIES = ("first", "second", "third")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("offload")
    write_models(folder / "models")
    write_lora(folder / "models" / "loras" / "spice.safetensors")
    for name in COPIES:
        shutil.copy(folder / "models" / "tiny-sd15.safetensors", folder / "models" / f"{name}.safetensors")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 4), dtype=np.uint8)).save(folder / "given.png")
    return folder


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Engine]]:
    """Starts engines with the settings given."""
    engines: list[Engine] = []

    def start(**settings) -> Engine:
        common = {"output_dir": folder / "out", "models_dir": folder / "models", "device": "cpu"}
        engines.append(Engine(Settings(**common | settings)))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()
