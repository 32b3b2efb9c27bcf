"""The header of a safetensors file, read without torch."""

from pathlib import Path

import pytest

from layerdiffuse_mcp.engine import tensorfile
from layerdiffuse_mcp.errors import LayerFileError, ModelNotFound
from layerdiffuse_mcp.hub import headers
from layerdiffuse_mcp.hub.headers import read_header
from tests.hub.files import tensors, weights, write


def headed(header: bytes) -> bytes:
    """A file with that header and ten bytes behind it."""
    return len(header).to_bytes(8, "little") + header + bytes(10)


def test_a_header_tells_shapes_metadata_and_where_the_data_begins(tmp_path: Path):
    content = tensors({"a": (2, 3), "b": (4,)}, {"made": "here"})
    header = read_header(write(tmp_path / "x.safetensors", content))
    assert header.shapes == {"a": (2, 3), "b": (4,)}
    assert header.metadata == {"made": "here"}
    assert len(content) - header.data_start == 10


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (weights(100)[:-1], "was cut short: it has"),
        (weights(100)[:20], "not a safetensors file, or it was cut short"),
        (b"", "not a safetensors file, or it was cut short"),
        ((5).to_bytes(8, "little") + b"[1,2]" + bytes(9), "its header cannot be read"),
        ((2).to_bytes(8, "little") + b"xx" + bytes(9), "its header cannot be read"),
        (weights(100).replace(b'"U8"', b'"C8"'), "stores its weights as C8"),
        ((10**9).to_bytes(8, "little") + b"{" + bytes(9), "do not hold its header"),
        (headed(b"[" * 100_000), "its header cannot be read"),
        (headed(b'{"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}}'), "its header cannot be read"),
        (headed(b'{"a": {"dtype": "U8", "shape": ["1"], "data_offsets": [0, 1]}}'), "its header cannot be read"),
        (headed(b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 0]}}'), "its header cannot be read"),
        (headed(b'{"a": {"dtype": ["U8"], "shape": [1], "data_offsets": [0, 1]}}'), "its header cannot be read"),
        (headed(b'{"__metadata__": ["a"]}'), "its header cannot be read"),
        (headed(b'{"__metadata__": {"a": {}}}'), "its header cannot be read"),
        (b"PK\x03\x04" + bytes(50), "is a pickle file under another name"),
        (b"\x80\x02}q" + bytes(50), "is a pickle file under another name"),
    ],
)
def test_a_file_that_is_not_whole_or_not_safetensors_is_refused(tmp_path: Path, content: bytes, said: str):
    with pytest.raises(LayerFileError, match=said):
        read_header(write(tmp_path / "x.safetensors", content), LayerFileError)


def test_a_file_that_is_not_there_is_told_so(tmp_path: Path):
    with pytest.raises(ModelNotFound, match="There is no file"):
        read_header(tmp_path / "x.safetensors")


def test_every_number_format_that_a_header_may_name_can_be_loaded():
    assert tensorfile.DTYPES.keys() == headers.DTYPES


def test_a_header_larger_than_any_model_has_is_refused_before_it_is_read(tmp_path: Path):
    path = write(tmp_path / "x.safetensors", (headers.MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{")
    with path.open("rb+") as file:
        file.truncate(headers.MAX_HEADER_BYTES * 2)
    with pytest.raises(LayerFileError, match="has a header of"):
        read_header(path, LayerFileError)


def test_a_number_format_that_cannot_be_read_is_no_damage(tmp_path: Path):
    path = write(tmp_path / "x.safetensors", weights(100).replace(b'"U8"', b'"F4"'))
    assert read_header(path, any_dtype=True).shapes == {"weight": (100,)}
    with pytest.raises(LayerFileError, match="stores its weights as F4"):
        read_header(path, LayerFileError)
