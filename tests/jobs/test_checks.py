"""The mid-grey test of a base: what counts as its background, what passes, and which file an answer is about."""

from pathlib import Path

import numpy as np
import platformdirs
import pytest

from layerdiffuse_mcp.families.entries import ModelEntry
from layerdiffuse_mcp.jobs import checks


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def entry(tmp_path: Path) -> ModelEntry:
    path = tmp_path / "base.safetensors"
    path.write_bytes(b"one")
    return ModelEntry(name="base", family="sd15", description="", native_size=512, path=path)


def test_the_background_is_what_the_edges_show_whatever_the_subject():
    pixels = np.full((64, 64, 3), 128, np.uint8)
    pixels[8:-8, 8:-8] = (200, 0, 0)
    pixels[:, -20:-10] = 0  # it reaches two edges
    assert checks.background_in(pixels) == (128, 128, 128)


@pytest.mark.parametrize(("colour", "passed"), [
    ((0x75,) * 3, True), ((0x89,) * 3, True), ((0x74, 0x80, 0x80), False), ((0x80, 0x80, 0x8A), False),
    ((0,) * 3, False),
])  # fmt: skip
def test_a_mid_grey_passes(entry: ModelEntry, colour: tuple[int, int, int], passed: bool):
    checks.remembered(entry, colour)
    assert checks.background_of(entry) == colour
    assert (checks.doubts(entry) == ()) is passed


def test_an_answer_is_about_the_file_that_was_tested(entry: ModelEntry):
    assert checks.doubts(entry) == ()
    checks.remembered(entry, (0, 0, 255))
    assert "base failed its test: it draws its background #0000ff" in checks.doubts(entry)[0]
    assert entry.path is not None
    entry.path.write_bytes(b"another")
    assert checks.doubts(entry) == ()
    entry.path.unlink()
    assert checks.doubts(entry) == ()


@pytest.mark.parametrize("content", ["", "[]", '{"base": 5}', '{"base": {"background": [1, 2], "file": null}}'])
def test_a_damaged_file_is_no_answer(entry: ModelEntry, content: str):
    path = platformdirs.user_state_path("layerdiffuse") / checks.FILE
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert checks.doubts(entry) == ()
    checks.remembered(entry, (0, 0, 255))
    assert checks.doubts(entry)
