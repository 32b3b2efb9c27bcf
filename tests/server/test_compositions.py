"""compose_layers as a client meets it: an editor's layers, compositions that are changed, and what is refused."""

import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcp import Client
from mcp_types import CallToolResult
from PIL import Image

from tests.results import facts_of, text_of

Connect = Callable[..., AbstractAsyncContextManager[Client]]

pytestmark = pytest.mark.anyio

SMALL = {"preview": False}


@pytest.fixture
def lamp(tmp_path: Path) -> Path:
    """A red lamp on transparency, in a folder that may be read."""
    return square(tmp_path / "lamp.png", (255, 0, 0))


def square(path: Path, colour: tuple[int, int, int]) -> Path:
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[4:12, 4:12] = (*colour, 255)
    Image.fromarray(pixels).save(path)
    return path


async def composed(client: Client, **arguments: Any) -> CallToolResult:
    return await client.call_tool("compose_layers", {"output": SMALL, **arguments})


def pixel(path: str, x: int, y: int) -> list[int]:
    with Image.open(path) as picture:
        return [*picture.convert("RGBA").getpixel((x, y))]  # pyright: ignore


async def test_the_answer_names_every_layer_and_its_rectangle(client: Client, lamp: Path):
    layers = [
        {"image": str(lamp), "name": "back", "scale": 2},
        {"image": str(lamp), "anchor": "bottom-right", "offset": [-2, 0], "rotate": 90, "shadow": {}},
        {"image": str(lamp), "visible": False},
    ]
    result = await composed(client, layers=layers, canvas={"size": "60x40"}, background="#0a3d62")
    facts = facts_of(result)
    assert facts["layers"] == [
        {"name": "background", "x": 0, "y": 0, "width": 60, "height": 40, "visible": True},
        {"name": "back", "x": 0, "y": 0, "width": 32, "height": 32, "visible": True},
        {"name": "lamp", "x": 42, "y": 24, "width": 16, "height": 16, "visible": True},
        {"name": "lamp 2", "x": 0, "y": 0, "width": 16, "height": 16, "visible": False},
    ]
    assert "Its image id: job-" in text_of(result)
    assert "back 0,0 (32x32); lamp 42,24 (16x16); lamp 2 0,0 (16x16, hidden)" in text_of(result)


@pytest.mark.parametrize("format", ["png", "ora", "psd"])
async def test_one_layer_is_changed_in_one_call(connect: Connect, lamp: Path, format: str):
    layers = [{"image": str(lamp), "name": "lamp"}, {"image": str(lamp), "name": "other", "x": 16}]
    async with connect() as client:
        first = await composed(client, layers=layers, output={"format": format, "preview": False, "name": "a Poster"})
        source = facts_of(first)["path"]
        assert f'source="{source}"' in text_of(first)
        change: dict[str, Any] = {"source": source, "replace": {"lamp": {"tint": "#0050ff"}}}
        kept = facts_of(await composed(client, **change))
        assert Path(kept["path"]).suffix == f".{format}"
        assert "-a-poster-composed" in Path(kept["path"]).stem
        shown = facts_of(await composed(client, **change, output={"format": "png", "preview": False}))
    red, green, blue, _ = pixel(shown["path"], 8, 8)
    assert blue > green > red
    assert pixel(shown["path"], 24, 8) == [255, 0, 0, 255]
    assert [layer["name"] for layer in shown["layers"]] == ["lamp", "other"]
    assert ("kept_in" in kept) == (format == "psd")


@pytest.mark.parametrize(("wished", "words"), [(None, "composition"), ("红苹果", "红苹果"), ("Äpfel 2", "apfel-2")])
async def test_a_composition_keeps_its_words_however_often_it_is_changed(
    client: Client, lamp: Path, wished: str | None, words: str
):
    output = {**SMALL, "name": wished}
    made = facts_of(await composed(client, layers=[{"image": str(lamp)}], background="lime", output=output))
    for _ in range(2):
        made = facts_of(await composed(client, source=made["path"]))
        assert re.fullmatch(rf"\d{{6}}-{words}-composed(-\d+)?", Path(made["path"]).stem)
    cut = await client.call_tool("cut_out", {"image": made["path"], "background": "lime", "output": SMALL})
    assert re.fullmatch(rf"\d{{6}}-{words}-cutout(-\d+)?", Path(facts_of(cut)["path"]).stem)
    assert made["path"] in text_of(await client.call_tool("find_images", {"words": words.partition("-")[0]}))


async def test_a_changed_composition_stays_on_its_canvas(connect: Connect, lamp: Path, tmp_path: Path):
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (90, 60), (20, 120, 40)).save(photo)
    layers = [{"image": str(photo)}, {"image": str(lamp), "x": 30, "y": 44, "shadow": {"blur": 12}}]
    async with connect() as client:
        on_layer = facts_of(await composed(client, layers=layers))
        on_background = facts_of(await composed(client, layers=layers[1:], background=str(photo)))
        moved = await composed(client, source=on_layer["path"], replace={"lamp": {"x": -9}})
        white = facts_of(await composed(client, source=on_background["path"], background="white"))
        grown = await composed(client, layers=[layers[0], {**layers[1], "x": 80}])
    for facts in (on_layer, on_background, facts_of(moved), white):
        assert (facts["width"], facts["height"]) == (90, 60)
    assert facts_of(moved)["layers"][1]["x"] == -9
    assert "lamp is cut by the canvas" in text_of(moved)
    assert "The canvas grew from 90x60 to" in text_of(grown)


async def test_a_layer_is_found_again_by_its_content_and_after_a_restart(connect: Connect, lamp: Path, tmp_path: Path):
    async with connect() as client:
        source = facts_of(await composed(client, layers=[{"image": str(lamp)}]))["path"]
    (tmp_path / "away").mkdir()
    lamp.rename(tmp_path / "away" / "renamed.png")
    square(lamp, (0, 255, 0))  # another picture by the old name
    async with connect() as client:
        again = facts_of(await composed(client, source=source))
        (tmp_path / "away" / "renamed.png").unlink()
        gone = await composed(client, source=source)
    assert pixel(again["path"], 8, 8) == [255, 0, 0, 255]
    assert gone.is_error
    assert "Layer lamp is lamp.png, and no file with its content" in text_of(gone)
    assert 'replace={"lamp": {"image": "..."}}' in text_of(gone)


async def test_a_picture_beside_the_composition_is_found_first(connect: Connect, lamp: Path, tmp_path: Path):
    async with connect() as client:
        source = Path(facts_of(await composed(client, layers=[{"image": str(lamp)}]))["path"])
        lamp.rename(source.with_name("lamp.png"))
        assert facts_of(await composed(client, source=str(source)))["width"] == 16


async def test_further_layers_lie_on_top_of_a_composition(connect: Connect, lamp: Path, tmp_path: Path):
    blue = square(tmp_path / "blue.png", (0, 0, 255))
    async with connect() as client:
        source = facts_of(await composed(client, layers=[{"image": str(lamp)}]))["path"]
        made = facts_of(await composed(client, source=source, layers=[{"image": str(blue)}], background="white"))
    assert [layer["name"] for layer in made["layers"]] == ["background", "lamp", "blue"]
    assert pixel(made["path"], 8, 8) == [0, 0, 255, 255]


async def test_a_composition_tells_nobody_where_its_pictures_lay(client: Client, lamp: Path, tmp_path: Path):
    for format in ("png", "ora", "psd"):
        output = {"format": format, "preview": False}
        facts = facts_of(await composed(client, layers=[{"image": str(lamp)}], output=output))
        for path in (facts["path"], facts.get("kept_in", facts["path"])):
            assert str(tmp_path).encode() not in Path(path).read_bytes()
    bare = facts_of(await composed(client, layers=[{"image": str(lamp)}], output={**SMALL, "metadata": "none"}))
    assert b"lamp" not in Path(bare["path"]).read_bytes()
    assert "holds no composition" in text_of(await composed(client, source=bare["path"]))


async def test_a_composition_reaches_no_file_that_may_not_be_read(
    connect: Connect, lamp: Path, tmp_path_factory: pytest.TempPathFactory
):
    import hashlib
    import json
    import zipfile

    from layerdiffuse_mcp.images.composition import ENTRY

    secret = square(tmp_path_factory.mktemp("outside") / "secret.png", (1, 2, 3))
    digest = hashlib.sha256(secret.read_bytes()).hexdigest()
    for name in (str(secret), f"../{secret.parent.name}/secret.png", "..", "/"):
        layer = {"name": "a", "image": {"name": name, "sha256": digest, "bytes": secret.stat().st_size}}
        with zipfile.ZipFile(record := lamp.with_name("a.ora"), "w") as archive:
            archive.writestr(ENTRY, json.dumps({"format": 1, "layers": [layer]}))
        async with connect() as client:
            result = await composed(client, source=str(record), output={"format": "png", "preview": False})
        assert result.is_error
        assert "no file with its content" in text_of(result)


L = "LAMP"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no layers": ({"layers": []}, "give at least one"),
    "nothing at all": ({}, "give at least one"),
    "replace without source": ({"layers": [{"image": L}], "replace": {"lamp": {}}}, "give its file as source"),
    "unknown blend": ({"layers": [{"image": L, "blend": "burn"}]}, "unknown blend mode 'burn'. Allowed: normal, mult"),
    "unknown anchor": ({"layers": [{"image": L, "anchor": "middle"}]}, "unknown anchor 'middle'."),
    "unknown field": ({"layers": [{"image": L, "tnt": "red"}]}, "Did you mean tint"),
    "unknown shadow field": ({"layers": [{"image": L, "shadow": {"color": "red"}}]}, "colour"),
    "a colour without #": ({"layers": [{"image": L}], "background": "0a3d62"}, 'give "#0a3d62"'),
    "a tint without #": ({"layers": [{"image": L, "tint": "0a3d62"}]}, 'give "#0a3d62"'),
    "a colour misspelt": ({"layers": [{"image": L}], "background": "turquose"}, "If a colour is meant: turquoise."),
    "a colour in another language": ({"layers": [{"image": L}], "background": "himmelblau"}, "its English name"),
    "no picture": ({"layers": [{"image": "none.png"}]}, "There is no file none.png"),
    "opacity": ({"layers": [{"image": L, "opacity": 2}]}, "layers.0.opacity"),
    "rotate": ({"layers": [{"image": L, "rotate": 361}]}, "layers.0.rotate"),
    "rotate NaN": ({"layers": [{"image": L, "rotate": "NaN"}]}, "layers.0.rotate"),
    "a name twice": ({"layers": [{"image": L, "name": "a"}, {"image": L, "name": "a"}]}, "Two layers are named 'a'"),
    "two places": ({"layers": [{"image": L, "x": 1, "anchor": "top"}]}, "x and y, or anchor"),
    "no size": ({"layers": [{"image": L}], "canvas": {"size": "big"}}, "canvas.size"),
    "no such format": ({"layers": [{"image": L}], "output": {"format": "gif"}}, "Allowed: png, webp, jpg, psd, ora"),
    "no composition": ({"source": L}, "lamp.png holds no composition. Give a png, ora or psd that compose_layers made"),
}


async def test_what_cannot_be_composed_is_refused_with_what_to_do(client: Client, lamp: Path):
    def filled(value: Any) -> Any:
        match value:
            case {**items}:
                return {name: filled(item) for name, item in items.items()}
            case [*items]:
                return [filled(item) for item in items]
            case _:
                return str(lamp) if value == L else value

    for name, (arguments, words) in REFUSED.items():
        result = await composed(client, **filled(arguments))
        assert result.is_error, name
        assert words in text_of(result), f"{name}: {text_of(result)}"
        assert "pydantic" not in text_of(result)


async def test_a_source_is_what_its_content_says(connect: Connect, lamp: Path, tmp_path: Path):
    async with connect() as client:
        made = Path(facts_of(await composed(client, layers=[{"image": str(lamp)}]))["path"])
        (tmp_path / "poster.txt").write_bytes(made.read_bytes())
        again = facts_of(await composed(client, source=str(tmp_path / "poster.txt")))
        assert Path(again["path"]).suffix == ".png"
        no_sources = {
            "poster.layers.json": "is a record, no picture: leave it there, and give poster.psd beside it",
            "notes.txt": "holds no composition. Give a png, ora or psd",
            "empty.png": "holds no composition. Give a png, ora or psd",
        }
        for name, words in no_sources.items():
            (tmp_path / name).write_text("{}" if name != "empty.png" else "")
            result = await composed(client, source=str(tmp_path / name))
            assert result.is_error
            assert f"{name} {words}" in text_of(result)


async def test_a_name_with_quotes_is_said_as_it_has_to_be_given(client: Client, lamp: Path):
    made = await composed(client, layers=[{"image": str(lamp), "name": 'the "old" lamp'}])
    assert r'replace={"the \"old\" lamp": {...}}' in text_of(made)


async def test_a_layer_to_replace_that_is_not_there_is_answered_with_those_that_are(connect: Connect, lamp: Path):
    layers = [{"image": str(lamp), "name": name} for name in ("lamp", "table")]
    async with connect() as client:
        source = facts_of(await composed(client, layers=layers))["path"]
        result = await composed(client, source=source, replace={"lmap": {"x": 4}})
    assert "There is no layer 'lmap' in this composition. Did you mean lamp? Allowed: lamp, table." in text_of(result)


@pytest.mark.parametrize(
    ("name", "value", "place"),
    [
        ("width", 20, "`canvas.size`"),
        ("height", 20, "`canvas.size`"),
        ("trim", True, "`canvas.trim`"),
        ("pad", 4, "`canvas.pad`"),
        ("format", "psd", "`output.format`"),
        ("name", "poster", "`output.name`"),
        ("preview", False, "`output.preview`"),
    ],
)
async def test_a_parameter_of_old_is_told_its_new_place(client: Client, lamp: Path, name: str, value: Any, place: str):
    result = await composed(client, layers=[{"image": str(lamp)}], **{name: value})
    assert f"`{name}` is now {place}" in text_of(result)


async def test_a_composition_is_told_by_inspecting_it_and_a_layered_file_is_read_as_its_flattened_picture(
    connect: Connect, lamp: Path
):
    layers = [{"image": str(lamp), "name": "post"}, {"image": str(lamp), "name": "lamp"}]
    async with connect() as client:
        flat = facts_of(await composed(client, layers=layers))["uri"]
        found = await client.call_tool("inspect_image", {"image": flat, "preview": False})
        plain = await client.call_tool("inspect_image", {"image": str(lamp), "preview": False})
        for format in ("ora", "psd"):
            layered = facts_of(await composed(client, layers=layers, output={"format": format, "preview": False}))[
                "uri"
            ]
            looked_at = await client.call_tool("inspect_image", {"image": layered, "preview": False})
            assert facts_of(looked_at)["format"] == format.upper()
            assert facts_of(looked_at)["layers"] == ["post", "lamp"]
            assert "It holds a composition: post, lamp." in text_of(looked_at)
            assert "a document of layers: its flattened picture is used" in text_of(looked_at)
            under = facts_of(await composed(client, layers=[{"image": layered}], background="white"))
            assert pixel(under["path"], 8, 8) == [255, 0, 0, 255]
            again = await composed(client, source=layered, output={"format": "png", "preview": False})
            assert pixel(facts_of(again)["path"], 8, 8) == [255, 0, 0, 255]
    assert facts_of(found)["layers"] == ["post", "lamp"]
    assert "It holds a composition: post, lamp." in text_of(found)
    assert "layers" not in facts_of(plain)
    assert "It holds no recipe." in text_of(plain)


async def test_what_was_put_together_or_cut_out_is_found_by_its_name(connect: Connect, lamp: Path, tmp_path: Path):
    picture = Image.new("RGB", (32, 32), "white")
    picture.paste((200, 30, 30), (8, 8, 24, 24))
    picture.save(tmp_path / "mug.png")
    async with connect() as client:

        async def found(**asked: str) -> list[str]:
            return [image["path"] for image in facts_of(await client.call_tool("find_images", asked))["images"]]

        cut = {"image": str(tmp_path / "mug.png"), "output": {"name": "Red mug", "preview": False}}
        mug = facts_of(await client.call_tool("cut_out", cut))["path"]
        assert await found(role="composed") == []
        hero = facts_of(
            await composed(client, layers=[{"image": str(lamp)}], output={"name": "Hero Banner (fröhlich)", **SMALL})
        )["path"]
        assert await found(words="mug RED") == [mug]
        assert await found(words="fröhlich hero") == [hero]
        assert await found(words="hero mug") == []
        assert await found(role="composed") == [hero]
        assert await found(role="foreground") == [mug]
