"""The canvas of a composition: how large it is, where layers lie on it, and that both stay when it is changed."""

from pathlib import Path

import numpy as np
import pytest

from layerdiffuse_mcp.api.layers import ANCHORS, Canvas, LayerOptions, Shadow
from layerdiffuse_mcp.images.png import png_bytes
from layerdiffuse_mcp.images.tasks import PlacedFile
from tests.images.layered import OUTLINE, SOFT, again, dot, dot_named, kept_in, lamp, photo, pixels, put_together


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
