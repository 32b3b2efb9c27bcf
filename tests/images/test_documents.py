"""Documents of layers as pictures: what is read of them, and what hostile ones can do."""

import contextlib
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.errors import ImageError
from layerdiffuse_mcp.images.compose import Layer, arrange, flatten
from layerdiffuse_mcp.images.export import export
from layerdiffuse_mcp.images.read import is_opaque, picture_size, read_picture


@pytest.fixture
def composition():
    rgba = np.random.default_rng(1).integers(0, 256, (20, 30, 4), np.uint8)
    rgba[..., 3] = np.maximum(rgba[..., 3], 40)
    return arrange([Layer(rgba, "all"), Layer(rgba[:5, :5], "small", opacity=0.5)])


def archive(path: Path, *, name: str = "mergedimage.png", data: bytes, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as made:
        made.writestr(name, data)
    return path


def png(width: int = 30, height: int = 20) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (width, height), (1, 2, 3, 4)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(("format", "tolerance"), [(".ora", 0), (".psd", 4)])
def test_a_document_is_read_as_its_flattened_picture(tmp_path, composition, format, tolerance):
    """A PSD stores colour blended with white, in 8 bits: at alpha 40 half a step is three of the colour."""
    path = tmp_path / f"poster{format}"
    path.write_bytes(export(composition, format))
    picture, flat = read_picture(path), flatten(composition)
    assert (picture.format, picture.has_alpha) == (format[1:].upper(), True)
    assert np.array_equal(picture.rgba[..., 3], flat[..., 3])
    assert np.abs(picture.rgba.astype(int) - flat).max() <= tolerance
    assert "flattened picture" in picture.notes[0]
    assert picture_size(path) == (30, 20)
    assert not is_opaque(path)


def test_a_psd_whose_fourth_channel_is_a_selection_is_opaque(tmp_path, composition):
    data = bytearray(export(composition, ".psd"))
    place = 26 + 4 + 4 + 8  # after the head, no palette, no resources, and two lengths
    [count] = struct.unpack_from(">h", data, place)
    assert count == -2
    struct.pack_into(">h", data, place, 2)
    (tmp_path / "p.psd").write_bytes(data)
    picture = read_picture(tmp_path / "p.psd")
    assert not picture.has_alpha
    assert is_opaque(tmp_path / "p.psd")
    assert picture.rgba[..., 3].min() == 255
    assert "a saved selection is passed over" in picture.notes


def test_the_bound_on_pixels_holds_for_documents_too(tmp_path, composition):
    for format in (".ora", ".psd"):
        (tmp_path / "p").write_bytes(export(composition, format))
        with pytest.raises(ImageError, match="30x20 pixels"):
            read_picture(tmp_path / "p", max_pixels=599)


def test_an_archive_without_a_flattened_picture_says_what_it_lacks(tmp_path):
    path = archive(tmp_path / "notes.zip", name="notes.txt", data=b"hello")
    with pytest.raises(ImageError, match=r"notes.zip is a zip archive without .* \(mergedimage.png\)"):
        read_picture(path)


def test_an_archive_that_unpacks_to_very_much_more_is_refused(tmp_path):
    path = archive(tmp_path / "bomb.ora", data=png() + bytes(10_000_000), method=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20_000
    with pytest.raises(ImageError, match="unpacks to more than 4 times its size"):
        read_picture(path)


def test_an_archive_packed_in_another_way_is_refused(tmp_path):
    path = archive(tmp_path / "odd.ora", data=png(), method=zipfile.ZIP_LZMA)
    with pytest.raises(ImageError, match="packed in another way"):
        read_picture(path)


def test_what_is_in_an_archive_has_to_be_a_picture(tmp_path):
    with pytest.raises(ImageError, match="not a picture"):
        read_picture(archive(tmp_path / "odd.ora", data=b"just words"))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("format", [".ora", ".psd"])
def test_scrambled_documents_give_a_picture_or_an_image_error_and_nothing_else(tmp_path, composition, format):
    data = np.frombuffer(export(composition, format), np.uint8)
    random = np.random.default_rng(2)
    path = tmp_path / "p"
    for number in range(120):
        broken = data.copy()
        first, last = (0, 300) if number % 2 else (max(0, len(data) - 300), len(data))
        broken[random.integers(first, min(last, len(data)), 3)] = random.integers(0, 256, 3)
        path.write_bytes(broken.tobytes()[: len(data) if number % 3 else len(data) * number // 120])
        for reader in (read_picture, picture_size, is_opaque):
            with contextlib.suppress(ImageError):
                reader(path)
