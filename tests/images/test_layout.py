"""Sizes and places of layers: fitted, turned, anchored."""

import pytest
from pydantic import ValidationError

from layerdiffuse_mcp.api.layers import ANCHORS, LayerOptions, merged
from layerdiffuse_mcp.images.layout import Rectangle, Shape, anchored, fitted, turned_size

SIZE = (800, 600)


@pytest.mark.parametrize(
    ("wanted", "crop", "size"),
    [
        ({}, (0, 0, 800, 600), (800, 600)),
        ({"scale": 0.5}, (0, 0, 800, 600), (400, 300)),
        ({"width": 200}, (0, 0, 800, 600), (200, 150)),
        ({"height": 1200}, (0, 0, 800, 600), (1600, 1200)),
        ({"width": 300, "height": 300}, (0, 0, 800, 600), (300, 225)),
        ({"width": 300, "height": 300, "fit": "stretch"}, (0, 0, 800, 600), (300, 300)),
        ({"width": 300, "height": 300, "fit": "cover"}, (100, 0, 700, 600), (300, 300)),
        ({"width": 300, "height": 100, "fit": "cover"}, (0, 166, 800, 433), (300, 100)),
    ],
)
def test_a_picture_is_fitted(wanted, crop, size):
    assert fitted(SIZE, **wanted) == (crop, size)


@pytest.mark.parametrize("fit", ["contain", "cover", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 999), (999, 1), (7, 5)])
def test_no_picture_is_fitted_into_nothing_or_beyond_its_frame(fit: str, size: tuple[int, int]):
    for frame in ((1, 1), (1, 300), (300, 1), (17, 13)):
        (left, top, right, bottom), (width, height) = fitted(size, *frame, fit)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        assert 1 <= width <= frame[0]
        assert 1 <= height <= frame[1]


def test_a_turned_picture_lies_in_an_upright_box():
    assert [turned_size((40, 20), degrees) for degrees in (0, 90, -90, 180, 360)] == [
        (40, 20), (20, 40), (20, 40), (40, 20), (40, 20),
    ]  # fmt: skip
    assert turned_size((100, 100), 45) == (142, 142)


def test_an_anchored_picture_lies_against_that_side_or_corner():
    room, size = (100, 50), (20, 10)
    where = {anchor: anchored(anchor, room, size) for anchor in ANCHORS}
    assert where == {
        "top-left": (0, 0), "top": (40, 0), "top-right": (80, 0),
        "left": (0, 20), "center": (40, 20), "right": (80, 20),
        "bottom-left": (0, 40), "bottom": (40, 40), "bottom-right": (80, 40),
    }  # fmt: skip
    assert anchored("bottom", room, size, (3, -5)) == (43, 35)


def test_a_layer_lies_where_it_was_put_after_fitting_and_turning():
    layer = LayerOptions(width=400, rotate=90, x=7, y=-9)
    shape = Shape.of(SIZE, layer)
    assert shape.placed(layer, (1000, 1000)) == Rectangle(7, -9, 300, 400)
    layer = LayerOptions(width=400, rotate=90, anchor="bottom-right")
    assert shape.placed(layer, (1000, 1000)) == Rectangle(700, 600, 300, 400)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"x": 4, "anchor": "top"}, "give x and y, or anchor"),
        ({"offset": (1, 2)}, "give anchor too"),
        ({"scale": 2, "width": 9}, "give scale, or width and height"),
        ({"fit": "cover", "width": 9}, "fit needs both"),
        ({"anchor": "centrally"}, "Did you mean center"),
        ({"blend": "dodge"}, "Allowed: normal, multiply, screen, overlay, soft-light, add"),
        ({"colour": "red"}, "a layer has no 'colour'"),
        ({"shadow": {"color": "red"}}, "a shadow has no 'color'. Did you mean colour"),
        ({"rotate": float("nan")}, "rotate"),
        ({"opacity": 1.5}, "opacity"),
        ({"scale": 0}, "scale"),
    ],
)
def test_a_layer_that_contradicts_itself_is_refused_with_what_is_allowed(fields, words):
    with pytest.raises(ValidationError, match=words):
        LayerOptions(**fields)


def test_names_may_be_written_with_spaces():
    assert LayerOptions(blend="soft light", anchor="Top Left").said() == {"blend": "soft-light", "anchor": "top-left"}


def test_a_change_replaces_another_way_of_saying_the_same():
    old = {"x": 4, "y": 5, "width": 30, "height": 40, "fit": "cover", "tint": "red", "shadow": {"blur": 3, "dx": 1}}
    assert merged(old, {"anchor": "top", "scale": 2}).keys() == {"anchor", "scale", "tint", "shadow"}
    assert merged(old, {"x": 9, "width": 50}) == {**old, "x": 9, "width": 50}
    assert merged(old, {"shadow": {"blur": 9}})["shadow"] == {"blur": 9, "dx": 1}
    assert merged({"size": "4x4"}, {"trim": False}) == {"size": "4x4", "trim": False}
    assert merged({"size": "4x4"}, {"trim": True}) == {"trim": True}
