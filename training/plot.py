"""The learning curves of a run: one panel a stage, from the logs in its work folder.

python -m training.plot --work build/training --out losses.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

# the first of these that a stage logs is drawn beside its loss
MEASURES = ("held", "db", "alpha255", "missed", "error", "foreground", "blended")
LOSSES = ("loss", "total")


def rows(file: Path) -> list[dict[str, float]]:
    """A stage's log; what a run that was begun anew repeats is taken from the last."""
    found: dict[float, dict[str, float]] = {}
    for line in file.read_text().splitlines():
        row = json.loads(line)
        found = {step: old for step, old in found.items() if step <= row["step"]}
        found[row["step"]] = found.get(row["step"], {}) | row
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


def known(minutes: list[float], found: list[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    """The minutes and values of the rows that have a value of this name."""
    pairs = [(minute, row[name]) for minute, row in zip(minutes, found, strict=True) if name in row]
    return [minute for minute, _ in pairs], [value for _, value in pairs]


def plot(work: Path, out: Path) -> None:
    """Draws every `*.log.jsonl` below `work` into one picture."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    files = sorted(work.glob("*.log.jsonl"), key=lambda file: file.stat().st_mtime)
    found_in = {file.name.split(".")[0]: rows(file) for file in files}
    logs = {stage: found for stage, found in found_in.items() if any({*LOSSES} & row.keys() for row in found)}
    if not logs:
        print(f"{work} holds no log yet: a stage writes a line every 50 steps")
        return
    across = 3
    down = -(-len(logs) // across)
    figure, panels = plt.subplots(down, across, figsize=(4.4 * across, 3 * down), squeeze=False, layout="constrained")
    for panel in panels.flat[len(logs) :]:
        panel.axis("off")
    for panel, (stage, found) in zip(panels.flat, logs.items(), strict=False):
        minutes = spent(found)
        loss = next(name for name in LOSSES if any(name in row for row in found))
        panel.semilogy(*known(minutes, found, loss), color="tab:blue", marker=".")
        panel.set(title=stage, xlabel="minutes", ylabel=loss)
        measure = next((name for name in MEASURES if any(name in row for row in found)), None)
        if measure:
            other = panel.twinx()
            other.plot(*known(minutes, found, measure), color="tab:orange", marker=".")
            other.set_ylabel(measure, color="tab:orange")
    figure.savefig(out, dpi=80)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/training"))
    parser.add_argument("--out", type=Path, default=Path("losses.png"))
    arguments = parser.parse_args()
    plot(arguments.work, arguments.out)
