"""Compositions that are kept in their files, and changed later; and what the work answers."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.api.layers import ANCHORS, Canvas, LayerOptions, PlacedLayer, Shadow
from layerdiffuse_mcp.errors import ImageError, InvalidRequest
from layerdiffuse_mcp.images.composition import ENTRY, Kept, Wanted, kept_by, read_kept, record
from layerdiffuse_mcp.images.files import sha256
from layerdiffuse_mcp.images.png import png_bytes
from layerdiffuse_mcp.images.read import opened_file
from layerdiffuse_mcp.images.tasks import Composed, ComposeTask, PlacedFile
from layerdiffuse_mcp.images.work import run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, (width, height, colour) in {"red": (20, 30, (255, 0, 0)), "blue": (20, 30, (0, 0, 255))}.items():
        pixels = np.zeros((height, width, 4), np.uint8)
        pixels[5:-5, 5:-5] = (*colour, 255)
        (tmp_path / f"{name}.png").write_bytes(png_bytes(pixels))
    return tmp_path


def put_together(folder: Path, *layers: PlacedFile, **more) -> Composed:
    return run(ComposeTask(layers, **more))


def lamp(folder: Path, **fields) -> PlacedFile:
    return PlacedFile(folder / "red.png", "lamp", LayerOptions(**fields))


def kept_in(data: bytes, name: str = "a.png", max_pixels: int = 10_000) -> Kept:
    with io.BytesIO(data) as file:
        file.name = name
        return read_kept(file, max_pixels)


def again(kept: Kept, folder: Path, **changes) -> Composed:
    """A kept composition put together once more, its pictures found by their SHA-256."""

    def find(wanted):
        for path in folder.glob("*.png"):
            with path.open("rb") as file:
                if sha256(file) == wanted.sha256:
                    return path
        raise ImageError("none")

    wanted = Wanted.of([], kept=kept, **changes)
    return run(wanted.task(lambda name: folder / name, find, suffix=".png"))


def pixels(composed: Composed) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(composed.data)))


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


def test_each_layer_is_told_where_it_lies_on_the_finished_canvas(folder: Path):
    layers = [PlacedFile(folder / "blue.png", "sky", LayerOptions(x=-5, scale=2)), lamp(folder, x=30, rotate=90)]
    made = put_together(folder, *layers, canvas=Canvas(pad=4))
    assert [tuple(vars(layer).values()) for layer in made.layers] == [
        ("sky", -1, 4, 40, 60, True), ("lamp", 34, 4, 30, 20, True),
    ]  # fmt: skip
    trimmed = put_together(folder, lamp(folder), canvas=Canvas(trim=True))
    assert [(layer.x, layer.y) for layer in trimmed.layers] == [(-5, -5)]


def test_a_shadow_lies_below_its_layer_and_the_canvas_reaches_as_far(folder: Path):
    shadow = Shadow(dx=10, dy=6, blur=0, colour="white", opacity=0.5)
    made = put_together(folder, lamp(folder, shadow=shadow, opacity=0.8))
    assert (made.width, made.height) == (25, 31)
    assert [layer.name for layer in made.layers] == ["lamp"]
    picture = pixels(made)
    assert picture[10, 8].tolist() == [255, 0, 0, 204]
    assert picture[28, 22].tolist() == [255, 255, 255, 102]
    assert pixels(put_together(folder, lamp(folder, shadow=shadow, visible=False)))[..., 3].max() == 0


def test_a_shadow_is_a_layer_of_its_own_in_layered_files(folder: Path):
    made = put_together(folder, lamp(folder, shadow=Shadow()), suffix=".ora")
    with zipfile.ZipFile(io.BytesIO(made.data)) as archive:
        stack = archive.read("stack.xml").decode()
    assert stack.index('name="lamp"') < stack.index('name="lamp shadow"')


def dot(folder: Path, **fields) -> PlacedFile:
    """A layer that is opaque to its edges, 20 x 20."""
    (folder / "dot.png").write_bytes(png_bytes(np.full((20, 20, 4), 255, np.uint8)))
    return PlacedFile(folder / "dot.png", "dot", LayerOptions(**fields))


OUTLINE = Shadow(dx=0, dy=0, blur=0, spread=5, colour="red", opacity=1)


@pytest.mark.parametrize(
    ("fields", "size", "where"),
    [
        ({"shadow": OUTLINE}, (30, 30), (5, 5)),
        ({"shadow": OUTLINE, "anchor": "center"}, (30, 30), (5, 5)),
        ({"shadow": OUTLINE, "x": 7, "y": 2}, (32, 30), (7, 5)),
        ({"shadow": Shadow(dx=-20, dy=-25, blur=0)}, (40, 45), (20, 25)),
        ({"x": -8, "y": -12}, (20, 20), (0, 0)),
        ({"anchor": "left", "offset": (-6, 0)}, (26, 20), (0, 0)),
    ],
)
def test_a_canvas_of_no_given_size_holds_all_that_is_visible(folder: Path, fields, size, where):
    made = put_together(folder, dot(folder, **fields))
    assert (made.width, made.height) == size
    assert [(layer.x, layer.y) for layer in made.layers] == [where]
    trimmed = put_together(folder, dot(folder, **fields), canvas=Canvas(trim=True, pad=12))
    left, top, right, bottom = trimmed.alpha.bbox or (0, 0, 0, 0)
    assert (left, top, trimmed.width - right, trimmed.height - bottom) == (12, 12, 12, 12)
    assert made.notes == trimmed.notes == ()


def test_an_anchored_layer_lies_against_the_canvas_that_holds_the_others(folder: Path):
    made = put_together(folder, dot(folder, x=-30), lamp(folder, anchor="top-left"), dot_named(folder, "end", x=40))
    assert [(layer.name, layer.x, layer.y) for layer in made.layers] == [("dot", 0, 0), ("lamp", 0, 0), ("end", 70, 0)]


def photo(folder: Path, **fields) -> PlacedFile:
    """A layer that is opaque but for its corners, 90 x 60."""
    pixels = np.full((60, 90, 4), 255, np.uint8)
    pixels[::59, ::89] = 0
    (folder / "photo.png").write_bytes(png_bytes(pixels))
    return PlacedFile(folder / "photo.png", "photo", LayerOptions(**fields))


SOFT = Shadow(dy=4, blur=8)


@pytest.mark.parametrize(
    ("below", "fields", "size"),
    [
        ({}, {"x": 30, "y": 36}, (90, 60)),
        ({}, {"anchor": "bottom-right"}, (90, 60)),
        ({"opacity": 0.9}, {"x": 30, "y": 40}, (90, 71)),
        ({"visible": False}, {"x": 30, "y": 40}, (90, 71)),
        ({"shadow": OUTLINE}, {"x": 30, "y": 40}, (100, 70)),
        ({"x": 5}, {"x": 30, "y": 40}, (95, 71)),
        ({}, {"x": 80, "y": 10}, (107, 60)),
        ({}, {"x": -15, "y": 10}, (112, 60)),
    ],
)
def test_a_shadow_enlarges_the_canvas_only_where_no_opaque_layer_fills_it(folder: Path, below, fields, size):
    made = put_together(folder, photo(folder, **below), dot(folder, shadow=SOFT, **fields))
    assert (made.width, made.height) == size
    grew = [note for note in made.notes if "grew" in note]
    if below.keys() - {"x", "shadow"} or size == (90, 60):
        assert grew == []
    else:
        assert grew[0].startswith(f"The canvas grew from 90x60 to {size[0]}x{size[1]}: dot ")
        assert "beyond photo. To keep it" in grew[0]


def test_a_colour_below_all_leaves_room_for_shadows(folder: Path):
    alone = put_together(folder, dot(folder, shadow=SOFT))
    coloured = put_together(folder, dot(folder, shadow=SOFT), background=(1.0, 1.0, 1.0))
    assert (alone.width, alone.height) == (coloured.width, coloured.height) == (34, 34)


@pytest.mark.parametrize("anchor", [None, *ANCHORS])
@pytest.mark.parametrize("canvas", [Canvas(), Canvas(pad=3), Canvas(trim=True, pad=2), Canvas(size="41x37", pad=5)])
@pytest.mark.parametrize("below", [None, "photo"])
def test_a_composition_lies_again_as_it_lay(folder: Path, anchor: str | None, canvas: Canvas, below: str | None):
    """Whatever its canvas was grown, trimmed and padded by."""
    place = {"x": -7, "y": 31} if anchor is None else {"anchor": anchor, "offset": (-9, 4)}
    layers = [dot_named(folder, "base", x=-3, y=12, shadow=SOFT), lamp(folder, rotate=30, shadow=SOFT, **place)]
    background = photo(folder).path if below else None
    first = put_together(folder, *layers, canvas=canvas, background=background)
    second = again(kept_in(first.data), folder)
    assert (second.layers, second.width, second.height) == (first.layers, first.width, first.height)
    assert np.array_equal(pixels(second), pixels(first))
    third = again(kept_in(second.data), folder, canvas=Canvas(pad=4))
    assert [(layer.x - 4, layer.y - 4) for layer in third.layers] == [(layer.x, layer.y) for layer in first.layers]
    trimmed = again(kept_in(second.data), folder, canvas=Canvas(trim=True))
    moved = {
        (layer.x - before.x, layer.y - before.y) for layer, before in zip(trimmed.layers, first.layers, strict=True)
    }
    assert len(moved) == 1


@pytest.mark.parametrize("below", ["layer", "background"])
def test_what_is_changed_lies_on_the_canvas_of_before(folder: Path, below: str):
    """Places are those that were answered, and go back to where they were."""
    cat = dot_named(folder, "cat", x=40, y=20, shadow=SOFT)
    given = [photo(folder), cat] if below == "layer" else [cat]
    made = put_together(folder, *given, background=photo(folder).path if below == "background" else None)
    moved = again(kept_in(made.data), folder, replace={"cat": {"x": -5}})
    assert (moved.width, moved.height, moved.layers[-1].x) == (90, 60, -5)
    assert moved.notes[0].startswith("cat is cut by the canvas: 25% ")
    back = again(kept_in(moved.data), folder, replace={"cat": {"x": 40}})
    assert np.array_equal(pixels(back), pixels(made))


def test_a_source_keeps_its_canvas_when_its_background_becomes_a_colour(folder: Path):
    kept = kept_in(put_together(folder, dot(folder, x=30, y=20), background=photo(folder).path).data)
    for background in ("white", "#ff0000"):
        made = again(kept, folder, background=background)
        assert (made.width, made.height) == (90, 60)
    assert again(kept, folder, canvas=Canvas(trim=True), background="white").width == 20


def test_a_picture_laid_below_a_source_brings_its_canvas_unless_one_was_asked_for(folder: Path):
    photo(folder)
    for canvas, size in ((Canvas(), (90, 60)), (Canvas(size="40x30"), (40, 30)), (Canvas(trim=True), (90, 60))):
        kept = kept_in(put_together(folder, dot(folder), canvas=canvas).data)
        made = again(kept, folder, background="photo.png")
        assert (made.width, made.height) == size


def test_a_shadow_that_a_kept_canvas_cuts_is_told_unless_it_falls_on_a_picture(folder: Path):
    kept = kept_in(put_together(folder, dot(folder)).data)
    cut = again(kept, folder, replace={"dot": {"shadow": {}}})
    assert cut.width == 20
    assert cut.notes[0].startswith("dot shadow is cut by the canvas")
    assert again(kept, folder, replace={"dot": {"shadow": {}}}, canvas=Canvas(pad=30)).notes == ()
    assert again(kept, folder, replace={"dot": {"shadow": {}}}, background="white").notes == ()


def test_what_lies_far_off_a_trimmed_canvas_is_kept(folder: Path):
    hidden = dot_named(folder, "hidden", x=-30_000, visible=False)
    made = put_together(folder, hidden, dot(folder, x=29_000, y=29_000), canvas=Canvas(trim=True))
    assert [layer.x for layer in again(kept_in(made.data), folder).layers] == [-30_000, 0]


def dot_named(folder: Path, name: str, **fields) -> PlacedFile:
    return PlacedFile(dot(folder).path, name, LayerOptions(**fields))


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


def test_layers_that_the_canvas_cuts_are_named(folder: Path):
    layers = [dot(folder, x=50), dot_named(folder, "half", x=30), dot_named(folder, "hidden", x=90, visible=False)]
    made = put_together(folder, *layers, dot_named(folder, "inside"), canvas=Canvas(size="40x20"))
    away, cut = made.notes
    assert away.startswith("dot lies wholly outside the canvas of 40x20: nothing of it is seen.")
    assert cut.startswith("half is cut by the canvas: 50% of what is visible of it lies outside. Give it")
    small = again(kept_in(put_together(folder, dot(folder, x=20)).data), folder, canvas=Canvas(size="20x20"))
    assert small.notes == (away.replace("40x20", "20x20"),)


def test_trimming_passes_over_specks_that_nobody_sees(folder: Path):
    pixels = np.zeros((30, 40, 4), np.uint8)
    pixels[0, 0] = pixels[29, 39] = (255, 255, 255, 4)
    pixels[5:15, 8:20] = 255
    (folder / "specks.png").write_bytes(png_bytes(pixels))
    made = put_together(folder, PlacedFile(folder / "specks.png", "specks"), canvas=Canvas(trim=True))
    assert (made.width, made.height) == (12, 10)


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
