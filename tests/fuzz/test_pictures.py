"""Damaged pictures and recipes: an error of ours or what is left of them, in bounded time and memory."""

import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from layerdiffuse_mcp.api.requests import GenerateRequest
from layerdiffuse_mcp.images.alpha import Bytes
from layerdiffuse_mcp.images.png import RECIPE_KEY, png_bytes, read_parameters, read_recipe
from layerdiffuse_mcp.images.read import MAX_PIXELS, read_picture
from layerdiffuse_mcp.recipes.recipe import recipe_of
from tests.fuzz.damage import damaged, damaged_json, damaged_png
from tests.fuzz.examples import bounded, examples, refusable
from tests.fuzz.serving import Server
from tests.results import facts_of
from tests.tasks import plan_of

REQUEST = GenerateRequest(prompt="steps 1", seed=3, model="pocket")
RECIPE = recipe_of(plan_of(REQUEST), weights={"model": "00" * 32}, device="cpu", dtype="float32")
NUMBERS = itertools.count()

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow warns of damage that it reads past


def encoded(server: Server, disc: Path, suffix: str) -> bytes:
    """A right file of that suffix: by our writer where there is one, else by Pillow."""
    if suffix in OURS:
        layers = [{"image": str(disc), "name": "disc"}, {"image": str(disc), "x": 4, "opacity": 0.5}]
        given = {"layers": layers, "output": {"format": suffix[1:], "preview": False}}
        return Path(facts_of(server.call("compose_layers", given))["path"]).read_bytes()
    buffer = io.BytesIO()
    with Image.open(disc) as image:
        mode = "RGBA" if suffix == ".tiff" else "RGB"
        image.convert(mode).save(buffer, Image.registered_extensions()[suffix])
    return buffer.getvalue()


def look_at(path: Path, data: bytes) -> None:
    """Write a file and read all that a picture can hold."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    with refusable():
        picture = read_picture(path)
        assert picture.rgba.dtype == np.uint8
        assert picture.rgba.shape[2:] == (4,)
        assert picture.rgba.size <= 4 * MAX_PIXELS
    for read in (read_recipe, read_parameters):
        with refusable():
            read(path)


@pytest.fixture(scope="module")
def right(server: Server, folder: Path) -> dict[str, bytes]:
    """A right file of each kind, by its suffix."""
    return {suffix: encoded(server, folder / "disc.png", suffix) for suffix in SUFFIXES}


OURS = (".png", ".webp", ".psd", ".ora")
SUFFIXES = (*OURS, ".jpg", ".gif", ".bmp", ".tiff")


@pytest.mark.parametrize("suffix", SUFFIXES)
@examples(60)
@given(data=st.data())
def test_a_damaged_picture_is_refused_or_read(right: dict[str, bytes], folder: Path, suffix: str, data: st.DataObject):
    look_at(folder / f"damaged{suffix}", data.draw(damaged(right[suffix])))


@examples(150)
@given(data=st.data())
def test_a_png_that_lies_under_a_right_checksum_is_refused_or_read(disc: Bytes, folder: Path, data: st.DataObject):
    whole = png_bytes(disc, recipe=RECIPE, parameters="a disc\nSteps: 1")
    look_at(folder / "lies.png", data.draw(damaged_png(whole)))


@examples(40)
@given(data=st.data())
def test_a_damaged_recipe_is_refused_or_drawn_and_the_server_goes_on(server: Server, folder: Path, data: st.DataObject):
    path = folder / f"recipe-{next(NUMBERS)}.png"
    path.write_bytes(with_recipe(data.draw(damaged_json(RECIPE))))
    with bounded():
        server.call("inspect_image", {"image": str(path)})
        server.call("redraw_image", {"image": str(path), "changes": data.draw(CHANGES)})
        server.wait_until_idle()


CHANGES = st.sampled_from(
    ({}, {"prompt": "steps 2"}, {"seed": 4}, {"options": {"steps": 3}}, {"count": 8}, {"size": "64x64"})
)


def with_recipe(recipe: Any) -> bytes:
    """A small PNG with that recipe, lone surrogates and all."""
    text, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    text.add_itxt(RECIPE_KEY, json.dumps(recipe))
    Image.new("RGBA", (8, 8)).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()
