"""The learning curves, from the logs that stages write."""

import json
from pathlib import Path

import pytest
from PIL import Image

from training import plot


def log(file: Path, *rows: dict[str, float]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_what_is_measured_now_and_then_joins_the_row_of_its_step_and_a_run_begun_anew_replaces_the_rest(tmp_path: Path):
    file = log(
        tmp_path / "unet.log.jsonl",
        {"step": 0, "seconds": 0, "held": 0.5},
        {"step": 49, "seconds": 10, "loss": 0.3},
        {"step": 49, "seconds": 10, "held": 0.4},
        {"step": 99, "seconds": 20, "loss": 0.2},
        {"step": 49, "seconds": 9, "loss": 0.25},
    )
    found = plot.rows(file)
    assert [row["step"] for row in found] == [0, 49]
    assert found[1] == {"step": 49, "seconds": 9, "loss": 0.25, "held": 0.4}
    assert plot.known([0, 1], found, "held") == ([0, 1], [0.5, 0.4])


@pytest.mark.extras
def test_a_stage_that_has_logged_no_loss_yet_has_no_panel(tmp_path: Path):
    log(tmp_path / "unet.log.jsonl", {"step": 0, "seconds": 0, "held": 0.5})
    plot.plot(tmp_path, tmp_path / "one.png")
    assert not (tmp_path / "one.png").exists()
    log(tmp_path / "layer.log.jsonl", {"step": 49, "seconds": 3, "loss": 0.5}, {"step": 99, "seconds": 6, "loss": 0.4})
    plot.plot(tmp_path, tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as drawn:
        assert drawn.width > 100
