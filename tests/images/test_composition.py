"""Compositions that are kept in their files, and changed later; and what the work answers."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.api.layers import Canvas, LayerOptions, PlacedLayer, Shadow
from layerdiffuse_mcp.errors import ImageError, InvalidRequest
from layerdiffuse_mcp.images.composition import ENTRY, Wanted, kept_by, read_kept, record
from layerdiffuse_mcp.images.png import png_bytes
from layerdiffuse_mcp.images.read import opened_file
from layerdiffuse_mcp.images.tasks import PlacedFile
from layerdiffuse_mcp.images.work import run
from tests.images.layered import again, dot_named, kept_in, lamp, pixels, put_together

ALL = {"x": 3, "y": 4, "width": 40, "height": 20, "fit": "cover", "rotate": 15, "flip": "vertical", "opacity": 0.7,
       "blend": "multiply", "tint": "#0050ff", "shadow": Shadow(dx=2, blur=4), "defringe": True}  # fmt: skip


@pytest.mark.parametrize("suffix", [".png", ".ora"])
def test_a_composition_is_kept_whole_in_its_file(folder: Path, suffix: str):
    layers = [PlacedFile(folder / "blue.png", "sky"), lamp(folder, **ALL)]
    first = put_together(folder, *layers, canvas=Canvas(size="60x50", pad=2), background=(1.0, 1.0, 0.0), suffix=suffix)
    kept = kept_in(first.data, f"a{suffix}")
    second = again(kept, folder)
    assert [layer.name for layer in second.layers] == ["background", "sky", "lamp"]
    assert second.layers == first.layers
    with zipfile.ZipFile(io.BytesIO(first.data)) if suffix == ".ora" else io.BytesIO() as archive:
        merged = archive.read("mergedimage.png") if suffix == ".ora" else first.data
    assert np.array_equal(pixels(second), np.array(Image.open(io.BytesIO(merged))))


def test_a_psd_has_its_composition_beside_it(folder: Path):
    made = put_together(folder, lamp(folder, scale=2), suffix=".psd")
    document = folder / "poster.psd"
    document.write_bytes(made.data)
    with document.open("rb") as file:
        with pytest.raises(ImageError, match=r"kept beside it in poster\.layers\.json: There is no file"):
            kept_by(file, document, opened_file, 10_000)
        (folder / "poster.layers.json").write_text(made.record or "")
        kept, suffix = kept_by(file, document, opened_file, 10_000)
    assert (kept.layers[0].scale, suffix) == (2, ".psd")


def test_one_layer_is_changed_and_the_others_stay(folder: Path):
    layers = [PlacedFile(folder / "red.png", "back", LayerOptions(x=30)), lamp(folder, anchor="top-left")]
    kept = kept_in(put_together(folder, *layers, canvas=Canvas(size="50x30")).data)
    blue = pixels(again(kept, folder, replace={"lamp": {"image": "blue.png"}}))
    assert blue[15, 10].tolist() == [0, 0, 255, 255]
    assert blue[15, 40].tolist() == [255, 0, 0, 255]
    assert [layer.x for layer in again(kept, folder, replace={"lamp": {"anchor": "top-right"}}).layers] == [30, 30]
    assert [layer.x for layer in again(kept, folder, replace={"lamp": {"x": 7}}).layers] == [30, 7]
    hidden = again(kept, folder, replace={"lamp": {"visible": False}})
    assert [layer.visible for layer in hidden.layers] == [True, False]
    assert pixels(hidden)[15, 10, 3] == 0


def test_a_canvas_and_a_background_are_changed_by_those_that_are_given(folder: Path):
    kept = kept_in(put_together(folder, lamp(folder), canvas=Canvas(size="50x40", pad=1), background=(1, 0, 0)).data)
    assert pixels(again(kept, folder))[0, 0].tolist() == [255, 0, 0, 255]
    changed = again(kept, folder, canvas=Canvas(trim=True, pad=1), background="#00ff00")
    assert (changed.width, changed.height) == (12, 22)
    assert pixels(changed)[0, 0].tolist() == [0, 255, 0, 255]


def test_no_path_is_kept_only_names_sizes_and_hashes(folder: Path):
    background = folder / "blue.png"
    text = put_together(folder, lamp(folder), background=background).record
    assert text is not None
    assert str(folder) not in text
    assert "/" not in text
    assert json.loads(text)["background"]["name"] == "blue.png"
    assert len(json.loads(text)["layers"][0]["image"]["sha256"]) == 64


@pytest.mark.parametrize("suffix", [".png", ".ora", ".psd"])
def test_nothing_is_kept_where_that_is_not_wanted(folder: Path, suffix: str):
    made = put_together(folder, lamp(folder), suffix=suffix, keep=False)
    assert made.record is None
    assert b"red.png" not in made.data


@pytest.mark.parametrize(
    ("replace", "words"),
    [
        ({"lmap": {}}, "There is no layer 'lmap' in this composition. Did you mean lamp. Allowed: back, lamp"),
        ({"lamp": {"colour": "red"}}, "replace 'lamp': a layer has no 'colour'"),
        ({"lamp": {"opacity": 2}}, "replace 'lamp': opacity"),
        ({"lamp": {"image": 7}}, "replace 'lamp': image"),
        ({"lamp": {"offset": [1, 2]}}, "give anchor too"),
    ],
)
def test_what_cannot_be_replaced_is_said(folder: Path, replace, words):
    kept = kept_in(put_together(folder, PlacedFile(folder / "blue.png", "back"), lamp(folder)).data)
    with pytest.raises(InvalidRequest, match=words):
        Wanted.of([], kept=kept, replace=replace)


def test_a_picture_that_is_gone_is_named_with_its_layer_and_the_way_out(folder: Path):
    kept = kept_in(put_together(folder, lamp(folder)).data)
    (folder / "red.png").unlink()
    with pytest.raises(ImageError, match=r'Layer lamp is red\.png, .*replace=\{"lamp": \{"image": "\.\.\."\}\}'):
        again(kept, folder)


def test_layers_have_names_of_their_own(folder: Path):
    def names(*given: PlacedLayer) -> list[str]:
        return [layer.name for layer in Wanted.of(given).task(Path, Path).layers]

    red = {"image": "red.png"}
    assert names(*(PlacedLayer(**red, **more) for more in ({}, {}, {"name": "red 2"}))) == ["red", "red 3", "red 2"]
    with pytest.raises(InvalidRequest, match="Two layers are named 'a'"):
        names(PlacedLayer(**red, name="a"), PlacedLayer(**red, name="a"))
    with pytest.raises(InvalidRequest, match="give at least one"):
        names()


DAMAGED = {
    "no JSON": "{",
    "no table": "[]",
    "a later format": '{"format": 2, "layers": []}',
    "no layers": '{"format": 1, "layers": []}',
    "no name": '{"format": 1, "layers": [{"image": {"name": "a.png", "sha256": "%s"}}]}' % ("0" * 64),
    "no hash": '{"format": 1, "layers": [{"name": "a", "image": {"name": "a.png", "sha256": "0"}}]}',
    "too deep": '{"format":' + "[" * 100_000,
    "too long": '{"format": 1, "x": "' + "x" * 1_000_001,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_composition_is_refused_in_words(name: str):
    text = DAMAGED[name]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(ENTRY, text)
    files = [archive.getvalue(), png_bytes(np.zeros((2, 2, 4), np.uint8), layers=text)]
    for data in [*files, text.encode()] if text.startswith("{") else files:
        with pytest.raises(ImageError, match="composition inside") as caught:
            kept_in(data)
        assert len(str(caught.value)) < 500


def test_a_file_without_a_composition_is_told_which_have_one():
    empty = io.BytesIO()
    with zipfile.ZipFile(empty, "w"):
        pass
    for data in (png_bytes(np.zeros((2, 2, 4), np.uint8)), b"PK\x03\x04" + bytes(40)):
        with pytest.raises(ImageError, match=r"holds no composition|is damaged"):
            kept_in(data)


def test_what_a_record_says_is_read_as_it_was_written(folder: Path):
    kept = kept_in(put_together(folder, lamp(folder, **ALL), canvas=Canvas(size="60x50")).data)
    with io.BytesIO(record(kept).encode()) as file:
        file.name = "a.layers.json"
        assert read_kept(file) == kept
    assert kept.layers[0].said() | {"image": 0, "name": 0} == LayerOptions(**ALL).said() | {
        "image": 0, "name": 0, "shadow": ALL["shadow"].model_dump(mode="json"),
    }  # fmt: skip


def test_a_shadow_is_a_layer_of_its_own_in_layered_files(folder: Path):
    made = put_together(folder, lamp(folder, shadow=Shadow()), suffix=".ora")
    with zipfile.ZipFile(io.BytesIO(made.data)) as archive:
        stack = archive.read("stack.xml").decode()
    assert stack.index('name="lamp"') < stack.index('name="lamp shadow"')


def test_the_background_is_no_layer_and_no_layer_is_called_as_it_is(folder: Path):
    kept = kept_in(put_together(folder, lamp(folder), background=(1.0, 0.0, 0.0)).data)
    with pytest.raises(InvalidRequest, match=r'no layer \'background\' .* give background="\.\.\."\. Allowed: lamp'):
        again(kept, folder, replace={"background": {"image": "blue.png"}})
    named = PlacedLayer(image="red.png", name="background")
    with pytest.raises(InvalidRequest, match="Give it another name"):
        Wanted.of([named], background="white")
    (folder / "background.png").write_bytes((folder / "red.png").read_bytes())
    task = Wanted.of([PlacedLayer(image="background.png")], background="white").task(
        lambda name: folder / name, lambda picture: folder / picture.name
    )
    assert [layer.name for layer in run(task).layers] == ["background", "background 2"]
    assert [
        layer.name
        for layer in again(
            kept_in(put_together(folder, dot_named(folder, "background")).data), folder, background="white"
        ).layers
    ] == ["background", "background"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tint": "0a3d62"}, "Layer lamp: tint '0a3d62' lacks its #: give \"#0a3d62\""),
        ({"tint": "no-such"}, "Layer lamp: tint 'no-such' is not known"),
        ({"tint": "#ff000080"}, 'colours here are opaque: "#ff0000"'),
        ({"shadow": Shadow(colour="fff")}, "shadow colour 'fff' lacks its #: give \"#fff\""),
        ({"width": 30_000, "height": 30_000, "fit": "stretch"}, "Layer lamp would have 30000x30000 pixels"),
        ({"width": 8_000, "height": 8_000, "fit": "stretch"}, "at most 32 million"),
        ({"width": 5_000, "shadow": Shadow(blur=200, spread=100)}, "The layers have .* million pixels"),
        ({"width": 20_000, "height": 1_000, "fit": "stretch", "rotate": 45}, "Layer lamp would have"),
    ],
)
def test_what_a_layer_cannot_be_is_refused_before_it_is_made(folder: Path, fields, words):
    with pytest.raises(InvalidRequest, match=words):
        put_together(folder, lamp(folder, **fields), max_pixels=32_000_000)


def test_a_jpeg_says_what_became_of_its_transparency(folder: Path):
    made = put_together(folder, lamp(folder), suffix=".jpg")
    assert made.alpha.opaque == 1
    assert "what shows through is white" in made.notes[0]
    assert put_together(folder, lamp(folder), background=(1.0, 0.0, 0.0), suffix=".jpg").notes == ()
