"""Pictures with their recipe inside; whatever a file holds, what is read of it can be handed on."""

import io
import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from layerdiffuse_mcp.errors import ImageError
from layerdiffuse_mcp.images.png import MAX_RECIPE, png_bytes, read_parameters, read_recipe

PICTURE = np.random.default_rng(0).integers(0, 256, (12, 20, 4), np.uint8)
RECIPE = {"prompt": 'ein "roter" Apfel, 赤いりんご\n🍎', "seed": 2**32 - 1, "stages": [{"steps": 20, "stop_at": 0.5}]}


def named(data, name="picture.png"):
    file = io.BytesIO(data)
    file.name = name
    return file


def with_text(folder, **texts):
    """A picture with these texts inside."""
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    Image.fromarray(PICTURE).save(folder / "picture.png", pnginfo=info)
    return folder / "picture.png"


def test_pixels_and_recipe_come_back_exactly(tmp_path):
    path = tmp_path / "apple.png"
    path.write_bytes(png_bytes(PICTURE, recipe=RECIPE, parameters="an apple, größer\nSteps: 20"))
    with Image.open(path) as opened:
        assert np.array_equal(np.array(opened), PICTURE)
    assert read_recipe(path) == RECIPE
    assert read_parameters(path) == "an apple, größer\nSteps: 20"


def test_a_picture_without_recipe_says_so(tmp_path):
    path = tmp_path / "plain.png"
    path.write_bytes(png_bytes(PICTURE[..., :3].copy()))
    assert read_recipe(path) is None
    assert read_parameters(path) is None


@pytest.mark.parametrize("escape", ["\\ud800", "\\udc80 and \\udfff"])
def test_whatever_a_recipe_holds_is_valid_text(tmp_path, escape):
    path = with_text(tmp_path, layerdiffuse=f'{{"prompt": "{escape}", "{escape}": [["{escape}"]]}}')
    recipe = read_recipe(path)
    json.dumps(recipe, ensure_ascii=False).encode("utf-8")
    assert recipe["prompt"].startswith("?")


DAMAGED = {
    "deep": "[" * 100_000,
    "deep in a table": '{"a": ' * 50 + "1" + "}" * 50,
    "not finite": '{"a": NaN}',
    "too large a number": '{"a": 1e999}',
    "too many digits": '{"a": ' + "9" * 5000 + "}",
    "too long": '{"a": "' + "x" * MAX_RECIPE + '"}',
    "not JSON": "{not json",
    "no table": "[1, 2]",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_recipe_is_an_error_not_a_guess(tmp_path, case):
    with pytest.raises(ImageError, match="recipe inside is damaged"):
        read_recipe(with_text(tmp_path, layerdiffuse=DAMAGED[case]))


def test_a_recipe_in_a_picture_larger_than_usual_is_read_where_that_is_allowed(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 10_000, 8, 6, 0, 0, 0)
    recipe = chunk(b"iTXt", b"layerdiffuse\0\0\0\0\0" + json.dumps({"seed": 1}).encode())
    path = tmp_path / "large.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + recipe + chunk(b"IDAT", zlib.compress(b"")))
    assert read_recipe(path, max_pixels=200_000_000) == {"seed": 1}
    with pytest.raises(ImageError, match="too large"):
        read_recipe(path)


def test_a_recipe_that_cannot_be_said_in_utf_8_is_written_so_that_it_can():
    recipe = read_recipe(named(png_bytes(PICTURE, recipe={"prompt": "a \udc80 b"}, parameters="\ud800")))
    assert recipe == {"prompt": "a ? b"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_or_a_device_is_no_picture_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero"), tmp_path):
        with pytest.raises(ImageError, match="cannot be read"):
            read_recipe(path)
