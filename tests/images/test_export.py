"""Exported files, read back with other programs' eyes."""

import io
import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from layerdiffuse_mcp.api.layers import BLENDS
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.compose import Composition, Layer, arrange, flatten
from layerdiffuse_mcp.images.export import export, ora_bytes
from layerdiffuse_mcp.images.psd import _packbits, psd_bytes
from layerdiffuse_mcp.images.read import read_picture


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)


@pytest.fixture
def composition():
    smooth = noise(30, 40, 1)
    smooth[5:25, 3:37] = (10, 200, 30, 255)
    return arrange(
        [
            Layer(noise(50, 60), "background"),
            Layer(smooth, "Äpfel & <Birnen> 🍐", x=12, y=-7, opacity=0.5),
            Layer(noise(8, 9, 2), "hidden", x=55, y=45, visible=False),
        ],
        canvas=(60, 50),
    )


@pytest.mark.parametrize("format", [".png", ".webp"])
def test_flat_formats_hold_the_flattened_picture_exactly(tmp_path, composition, format):
    path = tmp_path / "poster"
    path.write_bytes(export(composition, format))
    assert np.array_equal(read_picture(path).rgba, flatten(composition))


def test_an_unknown_format_is_refused_with_those_there_are(composition):
    with pytest.raises(InvalidRequest, match=r"\.png, \.webp, \.jpg, \.ora, \.psd"):
        export(composition, ".gif")


def test_openraster_keeps_every_layer_with_the_topmost_first(composition):
    with zipfile.ZipFile(io.BytesIO(ora_bytes(composition))) as archive:
        assert archive.infolist()[0].filename == "mimetype"
        assert archive.infolist()[0].compress_type == zipfile.ZIP_STORED
        assert archive.read("mimetype") == b"image/openraster"
        image = ElementTree.fromstring(archive.read("stack.xml"))
        assert (image.get("w"), image.get("h")) == ("60", "50")
        layers = image.findall("./stack/layer")
        assert [layer.get("name") for layer in layers] == ["hidden", "Äpfel & <Birnen> 🍐", "background"]
        assert layers[0].get("visibility") == "hidden"
        assert [layers[1].get(key) for key in ("x", "y", "opacity")] == ["12", "-7", "0.5"]
        for element, layer in zip(layers, reversed(composition.layers), strict=True):
            with archive.open(element.get("src")) as file:
                assert np.array_equal(np.array(Image.open(file)), layer.image)
        with archive.open("mergedimage.png") as file:
            assert np.array_equal(np.array(Image.open(file)), flatten(composition))
        with archive.open("Thumbnails/thumbnail.png") as file:
            assert max(Image.open(file).size) <= 256


def test_pillow_finds_the_layers_of_a_psd_by_name_and_place(composition):
    with Image.open(io.BytesIO(psd_bytes(composition))) as document:
        assert document.size == (60, 50)
        read = [(name, box) for name, _, box, _ in document.layers]
        assert [name for name, _ in read][::2] == ["background", "hidden"]
        assert [box for _, box in read] == [(0, 0, 60, 50), (12, -7, 52, 23), (55, 45, 64, 53)]


def test_pillow_reads_the_pixels_of_psd_layers_exactly():
    layers = [Layer(noise(33, 47, seed), f"layer {seed}") for seed in range(3)]
    layers[1].image[4:20] = (1, 2, 3, 255)
    with Image.open(io.BytesIO(psd_bytes(arrange(layers)))) as document:
        for number in (3, 2, 1):  # at first Pillow shows the merged picture, as number 1
            document.seek(number)
            stored = np.roll(np.array(document), -1, axis=-1)  # it takes the channels in the order of the file, A first
            assert np.array_equal(stored, layers[number - 1].image)


def test_psd_tools_reads_names_places_opacity_and_pixels(composition):
    psd_tools = pytest.importorskip("psd_tools", reason="psd-tools is not installed")
    document = psd_tools.PSDImage.open(io.BytesIO(psd_bytes(composition)))
    assert document.size == (60, 50)
    assert [layer.name for layer in document] == [layer.name for layer in composition.layers]
    for theirs, ours in zip(document, composition.layers, strict=True):
        assert (theirs.left, theirs.top) == (ours.x, ours.y)
        assert theirs.opacity == round(ours.opacity * 255)
        assert theirs.visible == ours.visible
        assert np.array_equal(np.array(theirs.topil()), ours.image)
    flat, merged = flatten(composition), np.array(document.topil())
    assert np.array_equal(merged[..., 3], flat[..., 3])
    seen = flat[..., 3] > 200
    assert np.abs(merged[seen].astype(int) - flat[seen]).max() <= 2


BOUND = 1
"""Of 255: how far our flattened picture may be from what a reader of the format makes of the layers. A PSD holds the
opacity as a byte."""


@pytest.fixture(params=BLENDS)
def mixed(request):
    """Soft and opaque noise in one blend mode over noise that is soft, opaque, and missing on the right."""
    below, above = noise(40, 50, 3), noise(36, 60, 4)
    below[:20, :, 3] = 255
    above[:, :30, 3] = 255
    above[::3, :, :3] = 255
    above[1::3, :, :3] = 0
    layers = [
        Layer(below, "below"),
        Layer(above, "above", x=3, y=2, opacity=153 / 255, blend=request.param),
        Layer(noise(9, 70, 5), "top", y=15, blend=request.param),
        Layer(noise(40, 70, 6), "hidden", blend=request.param, visible=False),
    ]
    return arrange(layers, canvas=(70, 40))


def test_psd_tools_composites_our_layers_to_our_flattened_picture(mixed):
    psd_tools = pytest.importorskip("psd_tools", reason="psd-tools is not installed")
    document = psd_tools.PSDImage.open(io.BytesIO(psd_bytes(mixed)))
    names = {"normal": "NORMAL", "soft-light": "SOFT_LIGHT", "add": "LINEAR_DODGE"}
    blend = mixed.layers[1].blend
    assert [layer.blend_mode.name for layer in document][1] == names.get(blend, blend.upper())
    theirs, ours = np.array(document.composite(force=True)).astype(int), flatten(mixed)
    assert np.abs(theirs[..., 3] - ours[..., 3]).max() <= BOUND
    seen = ours[..., 3] >= 64  # below that one step of alpha is more than one of colour
    assert np.abs(theirs[seen] - ours[seen]).max() <= BOUND


def test_a_reader_of_openraster_composites_our_layers_to_the_merged_picture(mixed):
    with zipfile.ZipFile(io.BytesIO(ora_bytes(mixed))) as archive, archive.open("mergedimage.png") as file:
        merged = np.array(Image.open(file)).astype(int)
        theirs = openraster(archive)
    assert np.abs(theirs[..., 3] - merged[..., 3]).max() <= BOUND
    seen = merged[..., 3] >= 64
    assert np.abs(theirs[seen] - merged[seen]).max() <= BOUND


def openraster(archive: zipfile.ZipFile) -> np.ndarray:
    """A stack composited as the OpenRaster specification says, in float64 and colour multiplied by alpha."""
    image = ElementTree.fromstring(archive.read("stack.xml"))
    canvas = np.zeros((int(image.get("h")), int(image.get("w")), 4))
    for layer in reversed(image.findall("./stack/layer")):
        if layer.get("visibility") == "hidden":
            continue
        with archive.open(layer.get("src")) as file:
            picture = np.array(Image.open(file)) / 255
        x, y = int(layer.get("x")), int(layer.get("y"))
        source = np.zeros_like(canvas)
        height, width = min(picture.shape[0], len(canvas) - y), min(picture.shape[1], canvas.shape[1] - x)
        source[y : y + height, x : x + width] = picture[:height, :width]
        alpha, below = source[..., 3:] * float(layer.get("opacity")), canvas[..., 3:]
        cs, cb = source[..., :3], np.divide(canvas[..., :3], below, out=np.zeros_like(canvas[..., :3]), where=below > 0)
        operator = layer.get("composite-op")
        if operator == "svg:plus":
            canvas = np.minimum(np.concatenate([cs * alpha + cb * below, alpha + below], axis=-1), 1)
            continue
        blend = SVG[operator](cb, cs)
        colour = alpha * below * blend + alpha * (1 - below) * cs + (1 - alpha) * below * cb
        canvas = np.concatenate([colour, alpha + below - alpha * below], axis=-1)
    cover = canvas[..., 3:]
    straight = np.divide(canvas[..., :3], cover, out=np.zeros_like(canvas[..., :3]), where=cover > 0)
    return np.rint(np.concatenate([straight, cover], axis=-1) * 255).astype(int)


SVG = {
    "svg:src-over": lambda b, s: s,
    "svg:multiply": lambda b, s: b * s,
    "svg:screen": lambda b, s: 1 - (1 - b) * (1 - s),
    "svg:overlay": lambda b, s: np.where(b <= 0.5, 2 * b * s, 1 - 2 * (1 - b) * (1 - s)),
    "svg:soft-light": lambda b, s: np.where(
        s <= 0.5,
        b - (1 - 2 * s) * b * (1 - b),
        b + (2 * s - 1) * (np.where(b <= 0.25, 16 * b**3 - 12 * b**2 + 4 * b, np.sqrt(b)) - b),
    ),
}


def test_a_jpeg_shows_white_where_the_picture_shows_through():
    picture = np.zeros((16, 16, 4), np.uint8)
    picture[4:12, 4:12] = (200, 0, 0, 255)
    with Image.open(io.BytesIO(export(arrange([Layer(picture, "a")]), ".jpg"))) as read:
        assert (read.format, read.mode) == ("JPEG", "RGB")
        pixels = np.array(read).astype(int)
    assert np.abs(pixels[0, 0] - 255).max() <= 4
    assert np.abs(pixels[8, 8] - (200, 0, 0)).max() <= 4


def test_a_canvas_larger_than_psd_allows_is_refused(tmp_path):
    with pytest.raises(InvalidRequest, match="30000 pixels a side"):
        psd_bytes(Composition(30_001, 1, ()))


def unpacked(data):
    result = bytearray()
    position = 0
    while position < len(data):
        head = data[position]
        if head < 128:
            result += data[position + 1 : position + 2 + head]
            position += 2 + head
        else:
            result += data[position + 1 : position + 2] * (257 - head)
            position += 2
    return bytes(result)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 300)), min_size=1, max_size=20))
def test_packed_rows_unpack_to_themselves(runs):
    row = np.concatenate([np.full(length, value, np.uint8) for value, length in runs])
    packed = _packbits(row)
    assert unpacked(packed) == row.tobytes()
    assert len(packed) <= len(row) + len(row) // 128 + 1


def test_names_that_no_document_can_hold_are_written_without_what_it_cannot():
    name = "a\x00b\x1fc\ud800d\uffffe\u0085f\U0001f350"
    composition = Composition(4, 4, (Layer(noise(4, 4), name),))
    with zipfile.ZipFile(io.BytesIO(ora_bytes(composition))) as archive:
        layer = ElementTree.fromstring(archive.read("stack.xml")).find("./stack/layer")
    assert layer is not None
    assert layer.get("name") == "a\ufffdb\ufffdc\ufffdd\ufffde\ufffdf\U0001f350"
    with Image.open(io.BytesIO(psd_bytes(composition))) as document:
        assert document.layers[0][0].startswith("a")


@pytest.mark.parametrize(("suffix", "limit"), [(".webp", 16_383), (".psd", 30_000)])
def test_a_canvas_that_a_format_has_no_room_for_is_refused(suffix, limit):
    strip = Composition(limit + 1, 1, (Layer(noise(1, 1), "a"),))
    with pytest.raises(InvalidRequest, match=rf"{suffix} files allow {limit} pixels.*this canvas has {limit + 1}"):
        export(strip, suffix)
