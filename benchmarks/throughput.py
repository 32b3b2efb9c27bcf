"""What several pictures cost together and one after another, with the embedded model.

    python benchmarks/throughput.py [--steps 20] [--counts 2 4 8]

"one request" asks for n pictures of one prompt, "group" is n requests with prompts of their own drawn as one batch;
both against the same pictures in requests of one. Seconds a picture, of the processor (all threads together) and of
the clock; on a shared machine the first is the steadier. "differs" is the largest difference to the picture drawn
alone, in steps of 255 (of one request, its first picture is compared).
"""

import argparse
import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _engine import Engine
from _report import header, table
from PIL import Image

from layerdiffuse_mcp.api.outcome import EncodedFile
from layerdiffuse_mcp.api.requests import GenerateRequest, Request
from layerdiffuse_mcp.settings import Settings

PROMPTS = ("a red apple", "a dog", "a glass", "a book", "a fish", "a cup", "a tree", "a car")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 4, 8])
    options = parser.parse_args()

    header(f"Seconds a picture, pocket model, 128x128, {options.steps} steps")
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(Settings(output_dir=Path(folder), model="pocket"))
        common = {"model": "pocket", "steps": options.steps}
        alone = [GenerateRequest(prompt=p, seed=n, **common) for n, p in enumerate(PROMPTS[: max(options.counts)])]
        draw(engine, [alone[0].model_copy(update={"steps": 1})])  # loads the model
        singles, *plain = draw(engine, alone)
        rows: list[Sequence[object]] = [("n", "way", "processor s", "wall s", "against single", "differs")]
        for count in options.counts:
            ways: dict[str, Request] = {
                "one request": alone[0].model_copy(update={"count": count}),
                "group": alone[:count],
            }
            for way, request in ways.items():
                drawn, *seconds = draw(engine, [request])
                compared = 1 if way == "one request" else count
                differs = max(difference(*pair) for pair in zip(drawn[:compared], singles, strict=False))
                rows.append((count, way, *seconds, seconds[0] / plain[0], differs))
        rows.append((1, "single", *plain, 1.0, 0))
    table(rows)


def draw(
    engine: Engine, requests: Sequence[Request | Sequence[GenerateRequest]]
) -> tuple[list[EncodedFile], float, float]:
    """The pictures of requests run in turn, and the seconds that each took: processor and wall."""
    processor, wall = time.process_time(), time.perf_counter()
    outcomes = [engine.run(request, lambda _: None) for request in requests]
    spent = time.process_time() - processor, time.perf_counter() - wall
    images = [file for outcome in outcomes for part in (outcome.parts or [outcome]) for file in part.encoded]
    return images, spent[0] / len(images), spent[1] / len(images)


def difference(ours: EncodedFile, theirs: EncodedFile) -> int:
    with Image.open(io.BytesIO(ours.data)) as one, Image.open(io.BytesIO(theirs.data)) as other:
        return int(np.abs(np.asarray(one).astype(int) - np.asarray(other)).max())


if __name__ == "__main__":
    main()
