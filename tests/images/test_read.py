"""Reading pictures that users give: of any kind, size and state."""

import contextlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from layerdiffuse_mcp.errors import ImageError
from layerdiffuse_mcp.images.alpha import TILE_PIXELS
from layerdiffuse_mcp.images.read import picture_size, read_picture

RGBA = np.random.default_rng(0).integers(0, 256, (12, 20, 4), np.uint8)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height, depth=8, colour=6):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "TIFF"])
def test_rgba_comes_back_as_it_is(tmp_path, format_):
    path = tmp_path / "picture"
    Image.fromarray(RGBA).save(path, format_, **({"lossless": True, "exact": True} if format_ == "WEBP" else {}))
    picture = read_picture(path)
    assert np.array_equal(picture.rgba, RGBA)
    assert (picture.format, picture.has_alpha, picture.notes) == (format_, True, ())


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "BMP"])
def test_a_picture_without_alpha_becomes_opaque(tmp_path, format_):
    Image.fromarray(RGBA[..., :3].copy()).save(tmp_path / "p", format_)
    picture = read_picture(tmp_path / "p")
    assert (picture.rgba[..., 3] == 255).all()
    assert not picture.has_alpha


@pytest.mark.parametrize(("mode", "note"), [("CMYK", "CMYK"), ("P", "palette"), ("L", None), ("1", None), ("LA", None)])
def test_other_colour_modes_are_converted_and_the_change_is_said(tmp_path, mode, note):
    Image.fromarray(RGBA[..., :3].copy()).convert(mode).save(tmp_path / "p.tif")
    picture = read_picture(tmp_path / "p.tif")
    assert picture.rgba.shape == (12, 20, 4)
    assert any(note in text for text in picture.notes) if note else picture.notes == ()


def test_a_palette_with_transparency_keeps_it(tmp_path):
    paletted = Image.fromarray(np.array([[0, 1]], np.uint8))
    paletted = paletted.convert("P")
    paletted.save(tmp_path / "p.png", transparency=0)
    picture = read_picture(tmp_path / "p.png")
    assert picture.has_alpha
    assert picture.rgba[0, :, 3].tolist() == [0, 255]


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    Image.fromarray(np.array([[0, 0x1234, 0x8000, 0xFFFF]], np.uint16)).save(tmp_path / "p.png")
    picture = read_picture(tmp_path / "p.png")
    assert picture.rgba[0, :, 0].tolist() == [0, 0x12, 0x80, 0xFF]
    assert picture.notes == ("16 bits a channel reduced to 8",)


def test_the_transparent_level_of_sixteen_bit_grey_is_transparent_and_no_other(tmp_path):
    row = b"\0" + struct.pack(">3H", 0x1234, 0x1235, 0xFFFF)
    header = png_header(3, 1, depth=16, colour=0)
    chunks = png_chunk(b"tRNS", struct.pack(">H", 0x1234)) + png_chunk(b"IDAT", zlib.compress(row))
    (tmp_path / "p.png").write_bytes(header + chunks + png_chunk(b"IEND", b""))
    picture = read_picture(tmp_path / "p.png")
    assert picture.has_alpha
    assert picture.rgba[0].tolist() == [[0x12] * 3 + [0], [0x12] * 3 + [255], [255] * 4]


def test_sixteen_bit_colour_is_reduced_and_said(tmp_path):
    row = b"\0" + struct.pack(">4H", 0xFFFF, 0x8000, 0, 0x4000)
    data = png_header(1, 1, depth=16) + png_chunk(b"IDAT", zlib.compress(row)) + png_chunk(b"IEND", b"")
    (tmp_path / "p.png").write_bytes(data)
    picture = read_picture(tmp_path / "p.png")
    assert picture.rgba[0, 0].tolist() == [255, 128, 0, 64]
    assert picture.notes == ("16 bits a channel reduced to 8",)


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_used_and_said(tmp_path, format_):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / "p", format_, save_all=True, append_images=frames[1:], duration=50)
    picture = read_picture(tmp_path / "p")
    assert picture.rgba[4, 4, 0] > 200
    assert picture.notes[0] == "animated: only the first of 3 is used"


def test_a_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGBA[..., :3].copy()).save(tmp_path / "p.png", exif=exif)
    picture = read_picture(tmp_path / "p.png")
    assert np.array_equal(picture.rgba[..., :3], np.rot90(RGBA[..., :3], -1))
    assert picture.notes == ("turned upright as its EXIF data says",)


@pytest.mark.parametrize("side", [8_001, 10_000, 60_000])
def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png_header(side, side) + png_chunk(b"IDAT", zlib.compress(b"")))
    with pytest.raises(ImageError, match=r"too large.*64 million"):
        read_picture(tmp_path / "bomb.png")


def test_the_limit_is_the_callers(tmp_path):
    Image.fromarray(RGBA).save(tmp_path / "p.png")
    with pytest.raises(ImageError, match="20x12 pixels"):
        read_picture(tmp_path / "p.png", max_pixels=239)
    assert read_picture(tmp_path / "p.png", max_pixels=240).rgba.shape == (12, 20, 4)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "an empty file"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", "HEIC"),
        (b'\x40\0\0\0\0\0\0\0{"a": 1}', "a safetensors file"),
        (b"just words\n", "text"),
        (bytes(range(200, 255)), "an unknown or damaged file"),
    ],
)
def test_what_is_not_a_picture_is_named(tmp_path, data, found):
    (tmp_path / "file.png").write_bytes(data)
    with pytest.raises(ImageError, match=found):
        read_picture(tmp_path / "file.png")


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_file_cut_short_is_refused(tmp_path, format_, share):
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 90, 3), np.uint8)).save(tmp_path / "p", format_)
    data = (tmp_path / "p").read_bytes()
    (tmp_path / "p").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError):
        read_picture(tmp_path / "p")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_scrambled_bytes_give_a_picture_or_an_image_error_and_nothing_else(tmp_path, format_):
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "p", format_)
    data = np.frombuffer((tmp_path / "p").read_bytes(), np.uint8)
    random = np.random.default_rng(2)
    for _ in range(60):
        broken = data.copy()
        broken[random.integers(0, min(len(data), 200), 3)] = random.integers(0, 256, 3)
        (tmp_path / "p").write_bytes(broken.tobytes())
        with contextlib.suppress(ImageError):
            read_picture(tmp_path / "p")


def test_a_missing_file_and_a_folder_are_image_errors(tmp_path):
    with pytest.raises(ImageError, match="There is no file"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(ImageError, match="cannot be read"):
        read_picture(tmp_path)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_the_size_in_the_header_is_that_of_the_picture_turned_upright(tmp_path, format_, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGBA[..., :3].copy()).save(tmp_path / "p", format_, exif=exif)
    assert picture_size(tmp_path / "p") == read_picture(tmp_path / "p").rgba.shape[1::-1]


@pytest.mark.parametrize("mode", ["P", "LA", "I;16", "CMYK", "1"])
def test_a_picture_of_several_tiles_is_converted_as_one(tmp_path, mode):
    side = round((3 * TILE_PIXELS) ** 0.5)
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side), np.uint8))
    picture = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    picture.save(tmp_path / "p.tif")
    expected = grey if mode == "I;16" else picture.convert("RGB")
    assert np.array_equal(read_picture(tmp_path / "p.tif").rgba, np.asarray(expected.convert("RGBA")))
