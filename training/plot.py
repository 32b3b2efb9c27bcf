"""The learning curves of a run: one panel a stage, from the logs in its work folder.

python -m training.plot --work build/training --out losses.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

# the first of these that a stage logs is drawn beside its loss
MEASURES = ("db", "alpha255", "missed", "error", "foreground", "blended")
LOSSES = ("loss", "total")


def rows(file: Path) -> list[dict[str, float]]:
    """A stage's log; what a run that was begun anew repeats is taken from the last."""
    found: dict[float, dict[str, float]] = {}
    for line in file.read_text().splitlines():
        row = json.loads(line)
        found = {step: old for step, old in found.items() if step < row["step"]}
        found[row["step"]] = row
    return list(found.values())


def spent(found: list[dict[str, float]]) -> list[float]:
    """Minutes of training up to each row; a run that went on with its clock at zero again follows the one before."""
    minutes, before, last = [], 0.0, 0.0
    for row in found:
        if row["seconds"] < last:
            before += last
        last = row["seconds"]
        minutes.append((before + last) / 60)
    return minutes


def plot(work: Path, out: Path) -> None:
    """Draws every `*.log.jsonl` below `work` into one picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    files = sorted(work.glob("*.log.jsonl"), key=lambda file: file.stat().st_mtime)
    if not files:
        print(f"{work} holds no log yet: a stage writes a line every 50 steps")
        return
    across = 3
    down = -(-len(files) // across)
    figure, panels = plt.subplots(down, across, figsize=(4.4 * across, 3 * down), squeeze=False, layout="constrained")
    for panel in panels.flat[len(files) :]:
        panel.axis("off")
    for panel, file in zip(panels.flat, files, strict=False):
        found = rows(file)
        minutes = spent(found)
        loss = next(name for name in LOSSES if name in found[0])
        panel.semilogy(minutes, [row[loss] for row in found], color="tab:blue", marker=".")
        panel.set(title=file.name.split(".")[0], xlabel="minutes", ylabel=loss)
        measure = next((name for name in MEASURES if name in found[0]), None)
        if measure:
            other = panel.twinx()
            other.plot(minutes, [row[measure] for row in found], color="tab:orange", marker=".")
            other.set_ylabel(measure, color="tab:orange")
    figure.savefig(out, dpi=80)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    parser.add_argument("--out", type=Path, default=Path("losses.png"))
    arguments = parser.parse_args()
    plot(arguments.work, arguments.out)
