"""What several pictures cost together and one after another, with the embedded model.

    python benchmarks/throughput.py [--steps 10] [--counts 1 2 4 8] [--rounds 1]

"one request" asks for n pictures at once, "group" is n requests with prompts of their own drawn as one batch, "single"
is n requests in turn. Seconds a picture, of the processor (all threads together) and of the clock; on a shared machine
the first is the steadier. "differs" is the largest difference to the pictures drawn singly, in steps of 255.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from _report import header, table
from PIL import Image

from layerdiffuse_mcp.outcome import Outcome
from layerdiffuse_mcp.requests import GenerateRequest, GroupRequest, Request
from layerdiffuse_mcp.runtime import load_engine
from layerdiffuse_mcp.settings import Settings

PROMPTS = ("a red apple", "a dog", "a glass", "a book", "a fish", "a cup", "a tree", "a car")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()

    header(f"Seconds a picture, pocket model, 128x128, {options.steps} steps")
    rows: list[Sequence[object]] = [("n", "way", "processor s", "wall s", "against single", "differs")]
    with tempfile.TemporaryDirectory() as folder:
        engine = load_engine()(Settings(output_dir=Path(folder), model="pocket"))

        def run(request: Request) -> Outcome:
            return engine.run(request, lambda _: None)

        def asked(prompt: str, seed: int, count: int = 1) -> GenerateRequest:
            return GenerateRequest(model="pocket", prompt=prompt, seed=seed, count=count, steps=options.steps)

        run(asked(PROMPTS[0], 0).model_copy(update={"steps": 1}))  # loads the model
        for count in options.counts:
            alike = [asked(PROMPTS[0], seed) for seed in range(count)]
            different = [asked(prompt, seed) for seed, prompt in enumerate(PROMPTS[:count])]
            together = asked(PROMPTS[0], 0, count)
            ways: dict[str, Callable[[], list[Outcome]]] = {
                "single": lambda alike=alike: [run(request) for request in alike],
                "one request": lambda together=together: [run(together)],
                "single, own prompts": lambda different=different: [run(request) for request in different],
                "group": lambda different=different: list(run(GroupRequest(requests=tuple(different))).parts),
            }
            seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
            pictures: dict[str, list[np.ndarray]] = {}
            for _ in range(options.rounds):
                for way, draw in ways.items():
                    processor, wall = time.process_time(), time.perf_counter()
                    outcomes = draw()
                    seconds[way].append((time.process_time() - processor, time.perf_counter() - wall))
                    pictures[way] = [pixels(image.path) for outcome in outcomes for image in outcome.images]
            for way, against in (("one request", "single"), ("group", "single, own prompts")):
                ours, plain = (
                    [statistics.median(column) / count for column in zip(*seconds[name], strict=True)]
                    for name in (way, against)
                )
                differs = max(np.abs(a - b).max() for a, b in zip(pictures[way], pictures[against], strict=True))
                rows.append((count, way, *ours, ours[0] / plain[0], int(differs)))
                rows.append((count, against, *plain, 1.0, 0))
    table(rows)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture).astype(int)


if __name__ == "__main__":
    main()
