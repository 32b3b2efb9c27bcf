"""Draws docs/layers.webp, the picture at the head of the README: a picture's layers, fanned out, and the whole.

    python -m docs.layers            # minutes on a CPU

Everything is made by calls of the tools: a scene by `generate_layers`, cut-outs by `generate_set`, the panes and the
finished picture by `compose_layers`. Only the view from the side is ours.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from mcp import Client
from PIL import Image, ImageDraw, ImageFilter

from docs.recipes import Call, checkerboard, made

PICTURE = Path(__file__).parent / "layers.webp"
CANVAS = 900, 600
SCENE = Call("generate_layers", {"prompt": "a cat, a beach", "seed": 3})
CUT_OUTS = ("a rainbow", "a cloud", "a castle", "a palm tree", "a crab", "a parrot", "bubbles")
DRAWN = Call("generate_set", {"subjects": [*CUT_OUTS], "seed": 1, "sheet": False, "cell": {"trim": False}})
PANES: Sequence[Sequence[Mapping[str, Any]]] = (
    ({"image": "scene", "width": 900, "height": 600, "fit": "cover"},),
    (
        {"image": "a rainbow", "x": 380, "y": 20, "height": 330, "opacity": 0.85},
        {"image": "a cloud", "x": 40, "y": -10, "height": 250},
        {"image": "a cloud", "x": 650, "y": -30, "height": 170, "flip": "horizontal"},
    ),
    ({"image": "a castle", "x": 120, "y": 130, "height": 340, "shadow": {"dy": 10, "blur": 30, "opacity": 0.35}},),
    (
        {"image": "a palm tree", "x": 500, "y": 50, "height": 450, "shadow": {"dy": 12, "blur": 30, "opacity": 0.4}},
        {"image": "a crab", "x": 330, "y": 400, "height": 180, "shadow": {"dy": 10, "blur": 24, "opacity": 0.4}},
    ),
    (
        {"image": "bubbles", "x": 60, "y": 250, "height": 300, "opacity": 0.8},
        {"image": "a parrot", "x": 640, "y": 320, "height": 240, "shadow": {"dy": 12, "blur": 30, "opacity": 0.35}},
    ),
)
"""What lies on each pane, from the back: the scene, then cut-outs."""

SIZE, SHARPER = (1600, 620), 2
TURN, TILT, APART, FAR = 0.8, 0.2, 1.0, 12.0
FAN = (0.025, 0.07), (0.62, 0.93)
"""The part of the view that the panes take: left and top, right and bottom."""
INK, PAPER = (18, 22, 33), (42, 50, 74)
Corners = Sequence[tuple[float, float]]


async def drawn(client: Client) -> tuple[list[Path], Path]:
    """The panes, from the back, and the finished picture."""
    scene, cut_outs = await made(client, [SCENE, DRAWN])
    pictures = {one["subject"]: one["uri"] for one in cut_outs["images"]}
    pictures["scene"] = next(one["uri"] for one in scene["images"] if one["role"] == "background")
    layers = [[{**layer, "image": pictures[layer["image"]]} for layer in pane] for pane in PANES]
    stacks = [*layers, [layer for pane in layers for layer in pane]]
    size = {"size": "x".join(map(str, CANVAS))}
    calls = [Call("compose_layers", {"layers": _named(stack), "canvas": size}) for stack in stacks]
    *panes, whole = [Path(facts["path"]) for facts in await made(client, calls)]
    return panes, whole


def _named(stack: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**layer, "name": f"layer {number}"} for number, layer in enumerate(stack, 1)]


def fanned(panes: Sequence[Image.Image], whole: Image.Image) -> Image.Image:
    """The panes one behind the other, seen from the side, and the finished picture beside them."""
    width, height = (side * SHARPER for side in SIZE)
    y, x = np.mgrid[0:height, 0:width]
    light = np.exp(-(((x / width - 0.35) / 0.5) ** 2 + ((y / height - 0.45) / 0.6) ** 2))[..., None]
    ground = np.array(INK) + (np.array(PAPER) - INK) * light
    view = Image.fromarray(ground.astype(np.uint8)).convert("RGBA")
    for pane, corners, is_glass in zip(
        panes, _places(len(panes), view.size), (False, *[True] * len(panes)), strict=False
    ):
        view.alpha_composite(_turned(_framed(pane, is_glass), corners, view.size))
    _beside(view, whole)
    return view.convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)


def _places(count: int, size: tuple[int, int]) -> Iterator[Corners]:
    """Where the corners of each pane are seen, from the back, in pixels: together they fill their part of the view."""
    half = CANVAS[0] / CANVAS[1]
    corners = ((-half, -1), (half, -1), (half, 1), (-half, 1))
    seen = np.array([[_seen(x, y, (number - (count - 1) / 2) * APART) for x, y in corners] for number in range(count)])
    low, high = seen.min((0, 1)), seen.max((0, 1))
    box = np.array(FAN) * [size, size]
    scale = ((box[1] - box[0]) / (high - low)).min()
    for pane in (seen - (low + high) / 2) * scale + box.mean(0):
        yield [(x, y) for x, y in pane]


def _seen(across: float, down: float, towards: float) -> tuple[float, float]:
    """Where a point of a pane, so far in front of the middle one, is seen."""
    x = across * np.cos(TURN) + towards * np.sin(TURN)
    z = -across * np.sin(TURN) + towards * np.cos(TURN)
    y, z = down * np.cos(TILT) + z * np.sin(TILT), z * np.cos(TILT) - down * np.sin(TILT)
    return x * FAR / (FAR - z), y * FAR / (FAR - z)


def _framed(pane: Image.Image, is_glass: bool) -> Image.Image:
    """A pane with its frame, and behind what is transparent a faint checkerboard."""
    framed = Image.new("RGBA", pane.size)
    if is_glass:
        board = checkerboard(*pane.size, 60).convert("L")
        framed = Image.merge("RGBA", (*[board] * 3, board.point(lambda level: 14 if level < 240 else 28)))
    framed.alpha_composite(pane)
    ImageDraw.Draw(framed).rectangle((0, 0, pane.width - 1, pane.height - 1), outline=(255, 255, 255, 190), width=3)
    return framed


def _turned(picture: Image.Image, corners: Corners, size: tuple[int, int]) -> Image.Image:
    """A picture drawn into four corners of a canvas."""
    left, top, right, bottom = 0, 0, picture.width, picture.height
    rows, wanted = list[list[float]](), list[float]()
    for (x, y), (u, v) in zip(corners, ((left, top), (right, top), (right, bottom), (left, bottom)), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        wanted += [u, v]
    factors = np.linalg.solve(np.array(rows), np.array(wanted))
    clear = picture.convert("RGBa")  # so that soft edges keep their colour
    return clear.transform(size, Image.Transform.PERSPECTIVE, factors, Image.Resampling.BICUBIC).convert("RGBA")


def _beside(view: Image.Image, whole: Image.Image) -> None:
    """Put the finished picture to the right, with a soft shadow."""
    width = round(SIZE[0] * SHARPER * 0.325)
    picture = whole.convert("RGBA").resize((width, width * whole.height // whole.width), Image.Resampling.LANCZOS)
    left, top = round(view.width * 0.645), (view.height - picture.height) // 2
    shadow = Image.new("RGBA", view.size)
    box = (left, top + 24, left + picture.width, top + 24 + picture.height)
    ImageDraw.Draw(shadow).rectangle(box, fill=(0, 0, 0, 170))
    view.alpha_composite(shadow.filter(ImageFilter.GaussianBlur(30)))
    ImageDraw.Draw(picture).rectangle((0, 0, width - 1, picture.height - 1), outline=(255, 255, 255, 230), width=5)
    view.alpha_composite(picture, (left, top))


async def main() -> None:
    """Draw it."""
    from layerdiffuse_mcp.server.app import create_server
    from layerdiffuse_mcp.settings import Settings

    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        settings = Settings(output_dir=Path("out").absolute(), model="pocket", history=False)
        async with Client(create_server(settings)) as client:
            panes, whole = await drawn(client)
        fanned([Image.open(path).convert("RGBA") for path in panes], Image.open(whole)).save(
            PICTURE, quality=90, method=6
        )


if __name__ == "__main__":
    anyio.run(main)
