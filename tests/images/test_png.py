"""Pictures on disk: complete, never overwritten, with their recipe inside."""

import os
import threading

import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.errors import ImageError, OutputError
from layerdiffuse_mcp.images.files import write_atomically
from layerdiffuse_mcp.images.png import read_parameters, read_recipe, write_png

PICTURE = np.random.default_rng(0).integers(0, 256, (12, 20, 4), np.uint8)
RECIPE = {"prompt": 'ein "roter" Apfel, 赤いりんご\n🍎', "seed": 2**32 - 1, "stages": [{"steps": 20, "stop_at": 0.5}]}


def test_pixels_and_recipe_come_back_exactly(tmp_path):
    path = write_png(tmp_path / "apple.png", PICTURE, recipe=RECIPE, parameters="an apple, größer\nSteps: 20")
    with Image.open(path) as opened:
        assert np.array_equal(np.array(opened), PICTURE)
    assert read_recipe(path) == RECIPE
    assert read_parameters(path) == "an apple, größer\nSteps: 20"


def test_a_picture_without_recipe_says_so(tmp_path):
    path = write_png(tmp_path / "plain.png", PICTURE[..., :3].copy())
    assert read_recipe(path) is None
    assert read_parameters(path) is None


@pytest.mark.parametrize("text", ["{not json", "[1, 2]"])
def test_a_damaged_recipe_is_an_error_not_a_guess(tmp_path, text):
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_itxt("layerdiffuse", text)
    Image.fromarray(PICTURE).save(tmp_path / "bad.png", pnginfo=info)
    with pytest.raises(ImageError, match="recipe inside is damaged"):
        read_recipe(tmp_path / "bad.png")


def test_no_file_is_ever_overwritten(tmp_path):
    paths = [write_png(tmp_path / "a.png", PICTURE) for _ in range(3)]
    assert [path.name for path in paths] == ["a.png", "a-2.png", "a-3.png"]
    assert sorted(os.listdir(tmp_path)) == ["a-2.png", "a-3.png", "a.png"]


def test_writers_at_once_get_different_names(tmp_path):
    start = threading.Barrier(8)
    got = []

    def write(number):
        start.wait()
        got.append(write_atomically(tmp_path / "x.bin", bytes([number])))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(got)) == 8
    assert {path.read_bytes() for path in got} == {bytes([number]) for number in range(8)}
    assert len(os.listdir(tmp_path)) == 8


def test_names_stay_unique_where_hard_links_do_not_exist(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    names = [write_atomically(tmp_path / "x.bin", bytes([number])).name for number in range(2)]
    assert names == ["x.bin", "x-2.bin"]
    assert (tmp_path / "x.bin").read_bytes() == b"\0"
    assert len(os.listdir(tmp_path)) == 2


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        write_png(tmp_path / "a.png", PICTURE)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_png(tmp_path / "file" / "a.png", PICTURE)


def test_missing_folders_are_made_and_files_are_readable_by_others_as_the_umask_says(tmp_path):
    path = write_png(tmp_path / "2026-01-01" / "a.png", PICTURE)
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
