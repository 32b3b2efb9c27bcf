"""What every golden test uses: the numbers to meet, the recipe they came from, and the report of how near we are.

A test says which file it answers for, and runs once for each key that the file has:

    @pytest.mark.golden_file("samplers")
    def test_latents_equal_the_reference(golden, key):
        golden.check("samplers", key, our_latents(golden, key))

`case` instead of `key` gives it the whole runs of `cases.json` one by one. A file that is missing, or that has none of
the keys asked for, fails the run. `pytest tests/golden --golden-dir DIR` runs the same tests against another set (its
own salt, seeds, sizes and prompts); with `--device cuda` samplers and whole runs are computed there, in float32, at
ten times the tolerance.
"""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from layerdiffuse_mcp.api.choices import SAMPLERS, SCHEDULES

from .recipe import Recipe

DATA = Path(__file__).parent / "data"
TOLERANCE = {"cpu": 1e-4, "cuda": 1e-3}  # of the relative L2 error, by the device


class GoldenSet(Recipe):
    """A folder of reference results, with the recipe (its salt applied) for what they were computed from.

    seeds: the seeds of a batch; latent: (height, width) of a latent picture, from the folder's `set.json`.
    """

    def __init__(self, folder: Path, errors: dict[str, tuple[float, str]], device: str = "cpu") -> None:
        described = json.loads((folder / "set.json").read_text())
        super().__init__(described["salt"])
        self.folder, self.device = folder, device
        self.seeds: list[int] = described["seeds"]
        self.latent: tuple[int, int] = (described["latent"][0], described["latent"][1])
        self._errors = errors
        self._files: dict[str, dict[str, Tensor]] = {}

    def keys(self, name: str) -> list[str]:
        """The keys of a file, sorted. Raises FileNotFoundError."""
        with safe_open(self.folder / f"{name}.safetensors", "pt") as file:
            return sorted(file.keys())

    def file(self, name: str) -> dict[str, Tensor]:
        """All tensors of `<name>.safetensors`."""
        if name not in self._files:
            with safe_open(self.folder / f"{name}.safetensors", "pt") as file:
                self._files[name] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return self._files[name]

    @cached_property
    def prompts(self) -> dict[str, Any]:
        """What `prompts.json` says, by the prompt's name."""
        return json.loads((self.folder / "prompts.json").read_text())

    @cached_property
    def cases(self) -> dict[str, dict[str, Any]]:
        """The whole runs of `cases.json`, by name: tool, arguments, methods, and the keys of what comes out."""
        return {case["name"]: case for case in json.loads((self.folder / "cases.json").read_text())["cases"]}

    def record(self, name: str, key: str, error: float) -> None:
        """Keep an error for the report at the end of the run: the largest of each file is shown."""
        if name not in self._errors or not error <= self._errors[name][0]:
            self._errors[name] = (error, key)

    def check(self, name: str, key: str, ours: Tensor, tolerance: float | None = None) -> None:
        """Assert that ours equals the file's tensor in shape and in relative L2 error, which is kept for the report."""
        tolerance = tolerance or TOLERANCE[self.device]
        gold = self.file(name)[key].to(torch.float64)
        assert ours.shape == gold.shape
        error = float(torch.linalg.vector_norm(ours.detach().cpu().to(torch.float64) - gold))
        error /= float(torch.linalg.vector_norm(gold)) or 1.0
        self.record(name, key, error)
        assert error <= tolerance, f"{name}: {key} is off by {error:.2e} (allowed: {tolerance:.0e})"


_errors = pytest.StashKey[dict[str, tuple[float, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir", type=Path, default=DATA, help="folder of golden cases to run (default: our own copy)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_errors] = {}
    config.addinivalue_line(
        "markers",
        "golden_file(name, only=None, without=None): one test a key of this file; where it is told, only those that "
        "begin with a path `only`, or not with a path `without`",
    )


def _golden_set(config: pytest.Config) -> GoldenSet:
    # the option is unknown to a run that reaches this folder only by collection
    folder: Path = config.getoption("--golden-dir", DATA)
    if not (folder / "set.json").exists():
        raise pytest.UsageError(f"{folder} is no folder of golden cases: it holds no set.json.")
    return GoldenSet(folder, config.stash.setdefault(_errors, {}), config.getoption("--device") or "cpu")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    golden = _golden_set(metafunc.config)
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", golden.cases.values(), ids=list(golden.cases))
    marker = metafunc.definition.get_closest_marker("golden_file")
    if marker and "key" in metafunc.fixturenames:
        metafunc.parametrize("key", keys_to_meet(golden, *marker.args, **marker.kwargs))


def keys_to_meet(golden: GoldenSet, name: str, only: str | None = None, without: str | None = None) -> list[str]:
    """The keys of a file that a marker asks for: below a path, not below another, and of choices that there are."""
    return [
        key
        for key in golden.keys(name)
        if (only is None or _below(only, key)) and not (without and _below(without, key)) and _is_ours(key)
    ]


def _below(path: str, key: str) -> bool:
    return f"{key}/".startswith(f"{path}/")


def _is_ours(key: str) -> bool:
    """Whether we have what a key is about: `others/` holds samplers and schedules that we may not have."""
    kind, _, rest = key.partition("/")
    return kind != "others" or rest.split("/")[0] in {*SAMPLERS, *SCHEDULES}


@pytest.fixture(scope="session")
def golden(pytestconfig: pytest.Config) -> GoldenSet:
    """The golden set of this run."""
    return _golden_set(pytestconfig)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    errors = config.stash.get(_errors, {})
    if errors:
        terminalreporter.section("largest relative error of each golden file")
        for name, (error, key) in sorted(errors.items()):
            terminalreporter.line(f"{name:<20} {error:.2e}  {key}")
