"""Exported files, read back with other programs' eyes."""

import io
import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

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
    with pytest.raises(InvalidRequest, match=r"\.png, \.webp, \.ora, \.psd"):
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
