"""Sheets and their atlas: every frame holds its picture, and nothing bleeds from one into the other."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.atlas import atlas_array, atlas_hash, unique_names
from layerdiffuse_mcp.images.sheet import Grid, fitted, numbered_preview
from layerdiffuse_mcp.images.tasks import MadeSheet, MakeSheetTask, SheetOptions
from layerdiffuse_mcp.images.work import run


def sprite(width: int, height: int, seed: int) -> np.ndarray:
    """A picture of which all but its outermost 3 pixels are visible."""
    pixels = np.random.default_rng(seed).integers(1, 256, (height, width, 4), np.uint8)
    pixels[:3] = pixels[-3:] = pixels[:, :3] = pixels[:, -3:] = 0
    return pixels


@pytest.fixture
def sprites(tmp_path: Path) -> dict[Path, np.ndarray]:
    """Seven pictures of various sizes."""
    made = {tmp_path / f"{seed}.png": sprite(20 + 3 * seed, 40 - 2 * seed, seed) for seed in range(7)}
    for path, pixels in made.items():
        Image.fromarray(pixels).save(path)
    return made


def made_of(sprites: dict[Path, np.ndarray], suffix: str = ".png", **options: Any) -> tuple[MadeSheet, np.ndarray]:
    names = tuple(path.stem for path in sprites)
    made = run(MakeSheetTask(tuple(sprites), names, SheetOptions(**options), suffix, preview=True))
    return made, np.asarray(Image.open(io.BytesIO(made.data)).convert("RGBA"))


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("extrude", [0, 2])
def test_the_frames_cut_out_of_the_sheet_are_the_trimmed_pictures(
    sprites: dict[Path, np.ndarray], suffix: str, extrude: int
):
    made, sheet = made_of(sprites, suffix, extrude=extrude, columns=3)
    assert sheet.shape[:2] == (made.height, made.width)
    assert len(made.frames) == 7
    for frame, pixels in zip(made.frames, sprites.values(), strict=True):
        x, y, width, height = frame.box
        assert np.array_equal(sheet[y : y + height, x : x + width], pixels[3:-3, 3:-3])
        assert frame.canvas == made.cell


def test_without_trimming_a_frame_is_the_whole_cell(sprites: dict[Path, np.ndarray]):
    made, sheet = made_of(sprites, trim=False, anchor="top-left")
    assert made.cell == (38, 40)
    for frame, pixels in zip(made.frames, sprites.values(), strict=True):
        x, y, width, height = frame.box
        assert (width, height) == made.cell
        cell = sheet[y : y + height, x : x + width]
        assert np.array_equal(cell[: pixels.shape[0], : pixels.shape[1]], pixels)
        assert frame.source == (0, 0, width, height)


def test_a_frame_put_back_into_its_canvas_stands_where_the_anchor_says(sprites: dict[Path, np.ndarray]):
    made, _ = made_of(sprites, anchor="bottom", cell=(64, 64))
    for frame in made.frames:
        left, top, width, height = frame.source
        assert top + height == 64
        assert abs((left + width / 2) - 32) <= 0.5


def test_around_a_frame_its_outermost_pixels_are_repeated_and_then_comes_nothing(sprites: dict[Path, np.ndarray]):
    made, sheet = made_of(sprites, extrude=2, padding=3, columns=3)
    taken = np.zeros(sheet.shape[:2], bool)
    for frame in made.frames:
        x, y, width, height = frame.box
        assert np.array_equal(sheet[y - 1, x : x + width], sheet[y, x : x + width])
        assert np.array_equal(sheet[y - 2 : y, x - 2 : x], np.broadcast_to(sheet[y, x], (2, 2, 4)))
        around = np.s_[y - 2 : y + height + 2, x - 2 : x + width + 2]
        assert not taken[around].any()
        taken[around] = True
    assert not sheet[~taken].any()


def test_pictures_are_fitted_into_cells_each_or_all_by_one_factor(sprites: dict[Path, np.ndarray]):
    each, _ = made_of(sprites, cell=(100, 100), fit="contain", trim=True)
    assert all(max(frame.box[2:]) == 100 for frame in each.frames)
    together, _ = made_of(sprites, cell=(100, 100), fit="together")
    widths = [frame.box[2] for frame in together.frames]
    assert max(max(frame.box[2:]) for frame in together.frames) == 100
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]
    shrunk, _ = made_of(sprites, cell=(16, 16))
    assert all(max(frame.box[2:]) == 16 for frame in shrunk.frames)


def test_a_picture_in_which_nothing_is_visible_has_an_empty_cell(sprites: dict[Path, np.ndarray], tmp_path: Path):
    empty = tmp_path / "empty.png"
    Image.fromarray(np.zeros((9, 9, 4), np.uint8)).save(empty)
    made, _ = made_of({**sprites, empty: np.zeros((9, 9, 4), np.uint8)})
    assert made.frames[-1].source == (0, 0, *made.cell)
    assert "empty: nothing is visible; its cell is empty" in made.notes


def test_trimming_passes_over_specks_that_nobody_sees(tmp_path: Path):
    pixels = np.zeros((30, 40, 4), np.uint8)
    pixels[0, 0] = pixels[29, 39] = (255, 255, 255, 4)
    pixels[5:15, 8:20] = 255
    Image.fromarray(pixels).save(tmp_path / "specks.png")
    made, _ = made_of({tmp_path / "specks.png": pixels})
    assert made.cell == (12, 10)


def test_a_fringe_is_taken_out_where_that_is_wanted(tmp_path: Path):
    pixels = np.zeros((20, 20, 4), np.uint8)
    pixels[4:16, 4:16] = (255, 255, 255, 128)
    pixels[6:14, 6:14] = (200, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "fringe.png")
    _, kept = made_of({tmp_path / "fringe.png": pixels})
    _, clean = made_of({tmp_path / "fringe.png": pixels}, defringe=True)
    assert tuple(kept[0, 0]) == (255, 255, 255, 128)
    assert tuple(clean[0, 5]) == (200, 0, 0, 128)


def test_what_is_too_large_is_refused_before_it_is_decoded(tmp_path: Path, sprites: dict[Path, np.ndarray]):
    large = tmp_path / "large.png"
    Image.fromarray(np.zeros((300, 300, 4), np.uint8)).save(large)
    large.write_bytes(large.read_bytes()[:60])  # whoever decodes it fails otherwise
    paths = (large, *sprites)
    names = tuple(str(number) for number in range(8))
    with pytest.raises(InvalidRequest, match="million pixels together"):
        run(MakeSheetTask(paths, names, max_pixels=90_001))
    with pytest.raises(InvalidRequest, match="The sheet would have 12294x12294 pixels"):
        run(MakeSheetTask(paths, names, SheetOptions(cell=(4096, 4096), padding=3)))
    with pytest.raises(InvalidRequest, match="at most 16384 a side"):
        run(MakeSheetTask(paths, names, SheetOptions(cell=(4096, 16), columns=8)))


def test_the_two_atlases_say_the_same_of_the_sheet(sprites: dict[Path, np.ndarray]):
    made, _ = made_of(sprites, cell=(64, 64), anchor="bottom")
    size = (made.width, made.height)
    by_name = json.loads(atlas_hash(made.frames, "sheet.png", size))
    in_order = json.loads(atlas_array(made.frames, "sheet.png", size))
    assert by_name["meta"] == in_order["meta"]
    assert by_name["meta"]["image"] == "sheet.png"
    assert by_name["meta"]["size"] == {"w": made.width, "h": made.height}
    assert [frame.pop("filename") for frame in in_order["frames"]] == list(by_name["frames"])
    assert in_order["frames"] == list(by_name["frames"].values())
    first = by_name["frames"]["0"]
    assert (first["rotated"], first["trimmed"]) == (False, True)
    assert first["sourceSize"] == {"w": 64, "h": 64}
    assert first["spriteSourceSize"]["y"] + first["spriteSourceSize"]["h"] == 64


def test_names_of_an_atlas_are_unique():
    assert unique_names(["a", "b", "a", "a-2", "a"]) == ("a", "b", "a-2", "a-2-2", "a-3")
    with pytest.raises(InvalidRequest, match="empty name"):
        unique_names(["a", " "])


def test_a_grid_places_cells_row_by_row():
    grid = Grid((10, 20), columns=3, count=7, padding=2, extrude=1)
    assert (grid.rows, grid.spacing) == (3, 4)
    assert grid.size == (3 * 10 + 2 * 4 + 2, 3 * 20 + 2 * 4 + 2)
    assert [grid.place(index) for index in (0, 1, 3)] == [(1, 1), (15, 1), (1, 25)]


def test_a_picture_larger_than_its_cell_is_made_smaller_in_proportion():
    picture = np.full((40, 80, 4), 255, np.uint8)
    canvas = fitted(picture, (20, 20), "bottom")
    assert (canvas[10:] == 255).all()
    assert not canvas[:10].any()


def test_the_preview_numbers_the_cells():
    grid = Grid((64, 64), columns=2, count=3, padding=2)
    sheet = np.zeros((*grid.size[::-1], 4), np.uint8)
    shown = np.asarray(Image.open(io.BytesIO(numbered_preview(sheet, grid).data)).convert("L"))
    for index in range(4):
        x, y = grid.place(index)
        dark = (shown[y : y + 64, x : x + 64] < 40).any()
        assert dark == (index < 3)
