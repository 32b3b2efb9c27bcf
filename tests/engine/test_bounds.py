"""Sizes are looked at before memory is taken, and what a given picture takes is bounded."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from layerdiffuse_mcp.api.fields import MAX_SIZE
from layerdiffuse_mcp.api.requests import EncodeRequest
from layerdiffuse_mcp.engine.pipeline.conditions import fitted
from layerdiffuse_mcp.engine.transparency.latent_file import read_latent
from layerdiffuse_mcp.errors import ImageError, InvalidRequest
from layerdiffuse_mcp.images.resize import CROP, FILL, STRETCH, check_fits, resized
from tests.saving import Engine

PEAK = """
import resource
import numpy as np
from layerdiffuse_mcp.engine.startup import lean_imports
with lean_imports():
    from layerdiffuse_mcp.engine.layers.conditions import control_picture
    from layerdiffuse_mcp.engine.pipeline.conditions import fitted, fitted_mask
picture = np.full((4000, 2000, 4), 100, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for work in (fitted, fitted_mask, control_picture):
    work(picture, 64, 64, "Crop and Resize")
    print(work.__name__, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
def test_a_picture_of_8_million_pixels_takes_at_most_16_bytes_a_pixel() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    peaks = {name: int(peak) for name, peak in map(str.split, done.stdout.splitlines())}
    assert len(peaks) == 3
    assert max(peaks.values()) < 8_000_000 * 16 + 40_000_000, peaks


def test_a_large_picture_is_fitted_as_a_smaller_one_but_for_its_hidden_colour(monkeypatch) -> None:
    rows, columns = np.mgrid[:400, :300]
    alpha = np.clip(255 - (rows - 200) ** 2 // 60 - (columns - 150) ** 2 // 60, 0, 255)
    picture = np.stack([rows % 256, columns % 256, (rows + columns) % 256, alpha], axis=-1).astype(np.uint8)
    for mode in (CROP, FILL, STRETCH):
        padded = fitted(picture, 64, 64, mode).astype(int)
        with monkeypatch.context() as patch:
            patch.setattr("layerdiffuse_mcp.engine.pipeline.conditions.MOST_PADDED", 1000)
            weighted = fitted(picture, 64, 64, mode).astype(int)
        assert np.abs(padded[..., 3] - weighted[..., 3]).max() <= 1
        solid = padded[..., 3] == 255
        assert solid.any()
        assert np.abs(padded - weighted)[solid].max() <= 1


def test_no_halo_comes_from_the_hidden_colour_of_a_large_picture(monkeypatch) -> None:
    monkeypatch.setattr("layerdiffuse_mcp.engine.pipeline.conditions.MOST_PADDED", 1000)
    picture = np.zeros((201, 201, 4), np.uint8)
    picture[...] = (255, 255, 255, 0)
    picture[:, :101] = (200, 30, 30, 255)
    result = fitted(picture, 64, 64, STRETCH)
    assert (result[result[..., 3] > 0][:, :3] == (200, 30, 30)).all()


@pytest.mark.parametrize("shape", [(1, 64_000_000), (10, 400_000)])
def test_a_picture_that_cropping_would_first_enlarge_beyond_measure_is_refused(shape: tuple[int, int]) -> None:
    picture = np.broadcast_to(np.zeros(4, np.float32), (*shape, 4))
    with pytest.raises(InvalidRequest, match="cannot be fitted to 64x64 by Crop and Resize"):
        resized(picture, 64, 64, CROP)
    check_fits(shape, (64, 64), STRETCH)


def test_what_is_encoded_is_no_larger_than_what_is_drawn(engine: Engine, folder: Path) -> None:
    for size in ((MAX_SIZE + 1, 8), (MAX_SIZE, MAX_SIZE + 1)):
        Image.new("RGBA", size).save(folder / "long.png")
        with pytest.raises(ImageError, match=r"at most (2048 a side|4.1943 million)"):
            engine.run(EncodeRequest(image=folder / "long.png", model="tiny-sd15"), lambda _: None)


def sparse(path: Path, shape: list[int], dtype: str = "F32") -> Path:
    size = int(np.prod(shape)) * (4 if dtype == "F32" else 2)
    sizes = ",".join(map(str, shape))
    header = f'{{"latent":{{"dtype":"{dtype}","shape":[{sizes}],"data_offsets":[0,{size}]}}}}'.encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    return path


@pytest.mark.parametrize("shape", [[4, 30_000, 30_000], [4, 1, 1_000_000], [4, 400_000, 8], [4, MAX_SIZE // 8 + 1, 8]])
def test_a_latent_too_large_is_refused_by_its_header_alone(tmp_path: Path, shape: list[int]) -> None:
    path = sparse(tmp_path / "huge.safetensors", shape, "F16")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match="at most 256x256 is decoded"):
        read_latent(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


@pytest.mark.parametrize("shape", [[4, 0, 8], [5, 8, 8], [2, 4, 8, 8], [8, 8]])
def test_what_has_another_shape_is_no_latent(tmp_path: Path, shape: list[int]) -> None:
    save_file({"latent": torch.zeros(shape)}, tmp_path / "other.safetensors")
    with pytest.raises(ImageError, match="holds no transparent latent"):
        read_latent(tmp_path / "other.safetensors")


@pytest.mark.parametrize("said", ["0", "²", "-1", "1e3", "65", "9" * 5000, "٣", ""])
def test_a_size_that_a_latent_cannot_have_is_not_believed(tmp_path: Path, said: str) -> None:
    facts = {"width": said, "height": said, "seed": said}
    save_file({"latent": torch.zeros(4, 8, 8)}, tmp_path / "odd.safetensors", facts)
    latent = read_latent(tmp_path / "odd.safetensors")
    assert (latent.width, latent.height) == (64, 64)
    assert latent.seed in (0, 65)
