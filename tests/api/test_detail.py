"""Tiles: where they lie, how many there are, and what is refused."""

from itertools import pairwise
from typing import Any

import pytest

from layerdiffuse_mcp.api.detail import MAX_PIXELS, Detail, Tiling, tiling_of
from layerdiffuse_mcp.api.plan import pixels_of
from layerdiffuse_mcp.api.requests import GenerateRequest, validated
from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.jobs.pace import work_of
from layerdiffuse_mcp.recipes.recipe import recipe_of, request_from
from tests.tasks import plan_of


def detailed(**fields: Any) -> GenerateRequest:
    return validated(GenerateRequest, {"prompt": "x", "detail": {}, **fields})


@pytest.mark.parametrize(
    ("size", "native", "count"),
    [
        ((1024, 1024), 1024, 1),
        ((1200, 1200), 1024, 1),
        ((2048, 2048), 1024, 4),
        ((4096, 4096), 1024, 16),
        ((2048, 2048), 512, 16),
        ((1024, 640), 512, 2),
        ((256, 256), 128, 4),
        ((1000, 3000), 512, 12),
    ],
)
def test_tiles_cover_a_picture_and_neighbours_overlap_by_a_quarter_of_the_models_own_size(size, native, count) -> None:
    tiling = tiling_of(size, native)
    boxes = tiling.boxes(size)
    assert len(boxes) == count
    assert max(tiling.width, tiling.height) <= 1.25 * native or count == 1
    for axis in (0, 1):
        spans = sorted({(box[axis], box[axis + 2]) for box in boxes})
        assert (spans[0][0], spans[-1][1]) == (0, size[axis])
        for (_, end), (begin, _) in pairwise(spans):
            assert begin % 8 == 0
            assert end - begin >= native // 4


def test_a_plan_says_the_larger_size_and_its_tiles_and_a_recipe_gives_them_back() -> None:
    made = plan_of(detailed(width=512, height=768, detail={"scale": 2}))
    assert (made.width, made.height, made.result) == (512, 768, (1024, 1536))
    assert made.detail is not None
    assert made.detail.tiling == tiling_of((1024, 1536), 512)
    assert pixels_of([made, plan_of(GenerateRequest(prompt="x"))]) == 1024 * 1536 + 512 * 512
    larger = made.as_detailed
    assert larger is not None
    assert (larger.width, larger.height, larger.strength, larger.detail) == (1024, 1536, made.detail.strength, None)
    again = plan_of(request_from(recipe_of(made, weights={}, device="cpu", dtype="float32")))
    assert again.detail == made.detail
    other = request_from(recipe_of(made, weights={}, device="cpu", dtype="float32"), {"width": 256, "height": 256})
    assert plan_of(other).result == (512, 512)


def test_a_picture_that_is_only_enlarged_keeps_its_size_before(tmp_path) -> None:
    made = plan_of(detailed(image=tmp_path / "x.png", strength=0), picture_size=(100, 60))
    assert (made.width, made.height, made.drawn, made.result, made.notes) == (100, 60, None, (200, 120), ())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": 2048, "height": 2048, "fit": "as_is", "detail": {"scale": 3}}, "Choose a smaller scale"),
        ({"width": 2048, "height": 2048, "fit": "contain", "detail": {"scale": 3}}, "Choose a smaller scale"),
        ({"detail": {"scale": 5}}, "detail.scale must be at most 4"),
        ({"detail": {"strength": 0}}, "detail.strength must be more than 0"),
        ({"detail": {"tiling": {"width": 64, "height": 64, "overlap": 40}}}, "more than half a tile"),
        ({"image": "x.png", "strength": 0, "detail": None}, "strength 0 changes nothing"),
    ],
)
def test_what_cannot_be_redrawn_is_refused(fields, words) -> None:
    with pytest.raises(InvalidRequest, match=words):
        plan_of(detailed(**fields))


def test_a_picture_too_small_for_a_model_even_when_enlarged_is_refused(tmp_path) -> None:
    for size, hint in (((16, 64), "Choose a larger scale, or put"), ((4000, 3), "Put")):
        with pytest.raises(InvalidRequest, match=rf"at least 64 pixels a side\. {hint} it on a larger canvas first"):
            plan_of(detailed(image=tmp_path / "x.png", strength=0), picture_size=size)


def test_the_largest_result_is_four_times_the_area_of_the_largest_drawing() -> None:
    assert plan_of(detailed(width=2048, height=2048, fit="as_is")).result == (4096, 4096)
    assert MAX_PIXELS == 4096**2


def test_the_time_of_a_redrawing_counts_its_tiles_and_its_strength(tmp_path) -> None:
    drawn = plan_of(GenerateRequest(prompt="x", steps=10))
    both = plan_of(detailed(steps=10, detail={"scale": 2, "strength": 0.5}))
    alone = plan_of(
        detailed(steps=10, image=tmp_path / "x.png", strength=0, detail={"scale": 2, "strength": 0.5}),
        picture_size=(512, 512),
    )
    tiles = 4 * 576 * 576 / 1e6 * 5
    assert work_of(both).steps == pytest.approx(work_of(drawn).steps + tiles)
    assert work_of(alone) == pytest.approx((tiles, tiles / 5))


def test_a_tiling_of_a_recipe_cuts_any_picture() -> None:
    assert Detail(tiling=Tiling(width=640, height=640, overlap=128)).tiling is not None
    assert Tiling(width=640, height=640, overlap=320).boxes((64, 64)) == ((0, 0, 64, 64),)
