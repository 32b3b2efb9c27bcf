"""Files that were right once: bytes changed, cut, doubled, lengths that lie; headers that are well formed and wrong."""

import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.hostile import HOSTILE

LENGTHS = (0, 1, 7, 0x7F, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)
HEADER = 400
"""Bytes at a file's beginning that are changed as often as all the others together."""
SENDABLE = tuple(value for value in HOSTILE if value == value and value not in (float("inf"), -float("inf")))


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with one to three kinds of damage."""
    data = bytearray(whole)
    for kind in draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=3)):
        end = max(0, len(data) - 1)
        at = draw(st.integers(0, min(end, HEADER)) | st.integers(0, end))
        kind(draw, data, at)
    return bytes(data)


def _cut(draw: st.DrawFn, data: bytearray, at: int) -> None:
    del data[at:]


def _change(draw: st.DrawFn, data: bytearray, at: int) -> None:
    new = draw(st.binary(min_size=1, max_size=8))
    data[at : at + len(new)] = new


def _lie(draw: st.DrawFn, data: bytearray, at: int) -> None:
    width, order = draw(st.sampled_from((1, 2, 4, 8))), draw(st.sampled_from(("little", "big")))
    data[at : at + width] = (draw(st.sampled_from(LENGTHS)) % 256**width).to_bytes(width, order)


def _insert(draw: st.DrawFn, data: bytearray, at: int) -> None:
    data[at:at] = draw(st.binary(min_size=1, max_size=64))


def _drop(draw: st.DrawFn, data: bytearray, at: int) -> None:
    del data[at : at + draw(st.integers(1, 64))]


def _repeat(draw: st.DrawFn, data: bytearray, at: int) -> None:
    part = data[at : at + draw(st.integers(1, 64))]
    data[at:at] = part * draw(st.integers(1, 50))


KINDS = (_cut, _change, _lie, _insert, _drop, _repeat)


@st.composite
def damaged_png(draw: st.DrawFn, whole: bytes) -> bytes:
    """A PNG in which the contents of one chunk are damaged and its checksum is right again, or a chunk comes twice."""
    chunks = list(_chunks(whole))
    number = draw(st.integers(0, len(chunks) - 1))
    kind, data = chunks[number]
    if draw(st.booleans()):
        chunks[number] = kind, draw(damaged(data or b"\0"))
    else:
        chunks.insert(draw(st.integers(0, len(chunks))), (kind, data))
    return whole[:8] + b"".join(chunk(kind, data) for kind, data in chunks)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        yield png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        at += length + 12


@st.composite
def damaged_safetensors(draw: st.DrawFn, whole: bytes) -> bytes:
    """A safetensors file whose header is JSON of the right length, and says something that is not so."""
    length = int.from_bytes(whole[:8], "little")
    header: dict[str, Any] = json.loads(whole[8 : 8 + length])
    for _ in range(draw(st.integers(1, 2))):
        key = draw(st.sampled_from(sorted(header)))
        if draw(st.integers(0, 4)) == 0:
            del header[key]
        elif key == "__metadata__" or draw(st.integers(0, 4)) == 0:
            header[key] = draw(st.sampled_from(SENDABLE))
        elif isinstance(header[key], dict):
            row = header[key] = dict(header[key])
            field = draw(st.sampled_from(("dtype", "shape", "data_offsets")))
            row[field] = draw(st.sampled_from(WRONG) | st.sampled_from(SENDABLE))
        if not header:
            break
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + whole[8 + length :]


WRONG: tuple[Any, ...] = (
    "F4", "I64", "BF16", "F64", [], [0], [-1], [2**40], [2**62, 2], [1.5], ["4"], [4, 64, 64], [1, 4, 1, 100_000],
    [None], [[1]], [0, 0], [0, 2**40], [-8, 8], [8, 0], [0, 7], [0, 0, 0],
)  # fmt: skip


@st.composite
def damaged_json(draw: st.DrawFn, whole: Any) -> Any:
    """A value of JSON with one to three parts replaced, left out or added."""
    changed = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        at = changed
        while isinstance(at, dict | list) and at:
            key = draw(st.sampled_from(sorted(at))) if isinstance(at, dict) else draw(st.integers(0, len(at) - 1))
            if not isinstance(at[key], dict | list) or not at[key] or draw(st.integers(0, 2)) == 0:
                _replace(draw, at, key)
                break
            at = at[key]
    return changed


def _replace(draw: st.DrawFn, at: Any, key: Any) -> None:
    match draw(st.integers(0, 5)):
        case 0:
            del at[key]
        case 1 if isinstance(at, dict):
            at["unknown"] = draw(st.sampled_from(HOSTILE))
        case 2 if isinstance(at, list):
            at.extend([at[key]] * 5000)
        case _:
            at[key] = draw(st.sampled_from(HOSTILE))
