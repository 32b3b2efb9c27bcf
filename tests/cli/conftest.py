"""Commands run in this process; what they print is read back; settings come from the environment."""

from collections.abc import Callable
from pathlib import Path

import pytest

from layerdiffuse_mcp.settings import Settings
from tests.narrow import write_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with a narrow base and its layer files."""
    folder = tmp_path_factory.mktemp("models")
    write_models(folder, ("sd15",))
    return folder


@pytest.fixture(autouse=True)
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The output folder; no other setting is set."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"LAYERDIFFUSE_{name.upper()}", raising=False)
    monkeypatch.setenv("LAYERDIFFUSE_DEVICE", "cpu")
    monkeypatch.setenv("LAYERDIFFUSE_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("LAYERDIFFUSE_OUTPUT_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.fixture
def narrow(models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the narrow models, which the commands use."""
    monkeypatch.setenv("LAYERDIFFUSE_MODELS_DIR", str(models))
    return models


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Callable[[], dict[str, str]]:
    """What was printed on stdout as `name: value` lines since the last look."""

    def read() -> dict[str, str]:
        return dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if ": " in line)

    return read
