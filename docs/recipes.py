"""Draws the pictures of docs/recipes.md, by the calls that stand there.

    python docs/recipes.py           # all of them, with the embedded model: minutes on a CPU
    python docs/recipes.py 2 9       # these alone

A call stands on lines of its own: the tool's name, then its arguments as JSON. `<1: foreground>` in them stands for
what the first call of the recipe returned: the first picture of that role, or what the result calls so (`<2: path>`).
`tests/end_to_end/test_recipes.py` makes the same calls.
"""

import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import numpy as np
from mcp import Client
from PIL import Image

HERE = Path(__file__).parent
PAGE, PICTURES = HERE / "recipes.md", HERE / "pictures"
HEIGHT, GAP, SQUARE, WIDEST = 150, 6, 10, 960
EARLIER = re.compile(r"<(\d+): (\w+)>")
SEEN = (".png", ".webp", ".jpg")
Facts = Mapping[str, Any]


class Call(NamedTuple):
    """A call as the page has it."""

    tool: str
    arguments: dict[str, Any]


def recipes(text: str) -> dict[str, list[Call]]:
    """The calls of each recipe, by its number."""
    parts = re.split(r"^## (\d+)\. ", text, flags=re.MULTILINE)[1:]
    return {number: [*_calls(part)] for number, part in zip(parts[::2], parts[1::2], strict=True)}


def _calls(part: str) -> Iterator[Call]:
    for block in re.findall(r"^```\n(.*?)^```", part, re.DOTALL | re.MULTILINE):
        for start in re.finditer(r"^(\w+) (?=\{)", block, re.MULTILINE):
            yield Call(start[1], json.JSONDecoder().raw_decode(block, start.end())[0])


async def made(client: Client, calls: Sequence[Call]) -> list[Facts]:
    """What each call returns, however long it takes; raises RuntimeError for one that is refused."""
    results: list[Facts] = []
    for call in calls:
        facts = await _called(client, call.tool, filled(call.arguments, results))
        while facts.get("status") in ("queued", "running"):
            waited = await _called(client, "get_job", {"job_ids": [facts["job_id"]], "wait_seconds": 600})
            [facts] = waited["jobs"]
        results.append(facts)
    return results


async def _called(client: Client, tool: str, arguments: dict[str, Any]) -> Facts:
    result = await client.call_tool(tool, arguments)
    if result.is_error or result.structured_content is None:
        raise RuntimeError(f"{tool}: {result.content}")
    return result.structured_content


def filled(value: Any, results: Sequence[Facts]) -> Any:
    """Arguments with what earlier calls returned in its place."""
    match value:
        case str():
            said = EARLIER.fullmatch(value)
            return _returned(results[int(said[1]) - 1], said[2]) if said else value
        case {**named}:
            return {name: filled(item, results) for name, item in named.items()}
        case [*items]:
            return [filled(item, results) for item in items]
        case _:
            return value


def _returned(facts: Facts, wanted: str) -> str:
    pictures = [one["uri"] for one in facts.get("images", ()) if one["role"] == wanted]
    return pictures[0] if pictures else facts[wanted]


def give(folder: Path) -> None:
    """Put the files that the recipes start from into a folder: drawn here, by arithmetic."""
    _dusk().save(folder / "photo.png")
    bubble, backgrounds = _bubble(), {"white": (255, 255, 255), "black": (0, 0, 0)}
    for name, colour in backgrounds.items():
        _on(bubble, colour).save(folder / f"bubble-on-{name}.png")
    _on(_badge(), (0, 177, 64)).save(folder / "badge.png")


def _dusk() -> Image.Image:
    """Hills at dusk, 640 x 400."""
    y, x = np.mgrid[0:400, 0:640] / 400
    picture = np.array([70, 60, 120]) + y[..., None] * np.array([230, 130, 30])
    picture += 90 * np.exp(-(((x - 1.1) ** 2 + (y - 0.55) ** 2) / 0.02))[..., None]
    for level, height, waves, colour in (
        (0.62, 0.05, 4.1, (120, 80, 110)),
        (0.72, 0.06, 2.9, (80, 62, 92)),
        (0.84, 0.04, 5.3, (46, 46, 62)),
    ):
        edge = level + height * np.sin(waves * x + 9 * level) + height / 3 * np.sin(3.7 * waves * x)
        cover = ((y - edge) * 200).clip(0, 1)[..., None]
        picture = picture * (1 - cover) + np.array(colour) * cover
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def _bubble() -> np.ndarray[Any, Any]:
    """A soap bubble: RGBA, 0..1, hardly there in its middle."""
    y, x = np.mgrid[-1:1:200j, -1:1:200j]
    radius = np.hypot(x, y) / 0.9
    alpha = (0.08 + 0.75 * radius**6) * ((1 - radius) * 60).clip(0, 1)
    alpha = np.maximum(alpha, 0.9 * np.exp(-((x + 0.35) ** 2 + (y + 0.4) ** 2) / 0.012))
    angle = np.arctan2(y, x)[..., None] + np.array([0, 2.1, 4.2])
    return np.dstack([0.65 + 0.35 * np.sin(2 * angle), alpha])


def _badge() -> np.ndarray[Any, Any]:
    """A red badge with a white star, RGBA, 0..1."""
    y, x = np.mgrid[-1:1:200j, -1:1:200j]
    radius, angle = np.hypot(x, y), np.arctan2(x, -y)
    star = ((0.42 + 0.16 * np.cos(5 * angle) - radius) * 40).clip(0, 1)[..., None]
    colour = np.array([0.85, 0.15, 0.12]) * (1 - star) + star
    return np.dstack([colour, ((0.8 - radius) * 50).clip(0, 1)])


def _on(picture: np.ndarray[Any, Any], colour: tuple[int, int, int]) -> Image.Image:
    alpha = picture[..., 3:]
    flat = picture[..., :3] * 255 * alpha + np.array(colour) * (1 - alpha)
    return Image.fromarray(flat.round().astype(np.uint8))


def shown(calls: Sequence[Call], results: Sequence[Facts], folder: Path) -> list[Path]:
    """The pictures of a recipe: those that were given, then those that were made; of a set its sheet."""
    text = json.dumps([call.arguments for call in calls])
    paths = [path for path in sorted(folder.glob("*.png")) if f'"{path.name}"' in text]
    for facts in results:
        sheet = [facts["sheet"]] if "sheet" in facts else None
        paths += [Path(one["path"]) for one in sheet or facts.get("images") or [facts]]
    return [path for path in dict.fromkeys(paths) if path.suffix in SEEN]


def strip(paths: Sequence[Path]) -> Image.Image:
    """Pictures in rows on a checkerboard, each as high as the others."""
    placed, x, y = list[tuple[Image.Image, int, int]](), 0, 0
    height = HEIGHT if len(paths) > 1 else 2 * HEIGHT
    for path in paths:
        with Image.open(path) as opened:
            width = round(opened.width * height / opened.height)
            picture = opened.convert("RGBA").resize((width, height), Image.Resampling.LANCZOS)
        if x and x + width > WIDEST:
            x, y = 0, y + height + GAP
        placed.append((picture, x, y))
        x += width + GAP
    size = max(left + one.width for one, left, _ in placed), y + height
    whole = Image.new("RGB", size, "white")
    for picture, left, top in placed:
        whole.paste(checkerboard(*picture.size), (left, top))
        whole.paste(picture, (left, top), picture)
    return whole


def checkerboard(width: int, height: int, square: int = SQUARE) -> Image.Image:
    """Light and less light squares."""
    rows, columns = np.indices((height, width)) // square
    return Image.fromarray(((rows + columns) % 2 * 38 + 214).astype(np.uint8)).convert("RGB")


async def main(numbers: Sequence[str]) -> None:
    """Draw all pictures, or those of these recipes."""
    from layerdiffuse_mcp.server.app import create_server
    from layerdiffuse_mcp.settings import Settings

    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name, chdir(name):
        give(Path(name))
        settings = Settings(output_dir=Path("out").absolute(), model="pocket", history=False)
        async with Client(create_server(settings)) as client:
            for number, calls in recipes(PAGE.read_text()).items():
                if not numbers or number in numbers:
                    paths = shown(calls, await made(client, calls), Path(name))
                    strip(paths).save(PICTURES / f"recipe-{number}.webp", quality=90, method=6)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1:])
