"""A writer of Photoshop documents: 8-bit RGB with named, placed, faded and hidden layers, and nothing else.

Source: "Adobe Photoshop File Formats Specification" (2019). Numbers are big-endian, pixel rows are packed with
PackBits, which every reader of PSD understands.
"""

import struct

import numpy as np

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.alpha import Bytes, to_bytes
from layerdiffuse_mcp.images.compose import Composition, Layer, flatten_exact

MAX_SIDE = 30_000
PACKED = struct.pack(">H", 1)
HIDDEN = 2
TRANSPARENCY, RED, GREEN, BLUE = -1, 0, 1, 2
MIN_RUN = 3  # shorter runs cost more as runs than inside a literal
MAX_PACKET = 128


def psd_bytes(composition: Composition) -> bytes:
    """A PSD file of a composition: the lowest layer first, as given, and the flattened picture for simple readers.

    Raises:
        InvalidRequest: the canvas or a layer is larger than PSD allows.
    """
    sides = [composition.width, composition.height]
    sides += [side for layer in composition.layers for side in layer.image.shape[:2]]
    if max(sides) > MAX_SIDE:
        raise InvalidRequest(f"PSD allows {MAX_SIDE} pixels a side, this has {max(sides)}. Export .ora instead.")
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 4, composition.height, composition.width, 8, 3)
    no_palette = struct.pack(">I", 0)
    return header + no_palette + _block(b"") + _block(_layers(composition)) + _merged(composition)


def _layers(composition: Composition) -> bytes:
    channels = [_packed_channels(layer.image) for layer in composition.layers]
    # a negative count says that the merged picture's first extra channel is its transparency
    info = struct.pack(">h", -len(composition.layers))
    info += b"".join(_record(layer, packed) for layer, packed in zip(composition.layers, channels, strict=True))
    info += b"".join(packed for layer in channels for packed in layer)
    return _block(_padded(info, 2)) + _block(b"")  # and no global mask


def _record(layer: Layer, packed: list[bytes]) -> bytes:
    """What a layer is, without its pixels."""
    height, width = layer.image.shape[:2]
    record = struct.pack(">4iH", layer.y, layer.x, layer.y + height, layer.x + width, len(packed))
    for channel, data in zip((TRANSPARENCY, RED, GREEN, BLUE), packed, strict=True):
        record += struct.pack(">hI", channel, len(data))
    flags = 0 if layer.visible else HIDDEN
    record += struct.pack(">4s4sBBBx", b"8BIM", b"norm", round(layer.opacity * 255), 0, flags)

    plain = layer.name.encode("macroman", "replace")[:255]
    unicode_name = layer.name.encode("utf-16-be")
    no_mask = no_blending_ranges = _block(b"")
    name = _padded(bytes([len(plain)]) + plain, 4)
    long_name = b"8BIMluni" + _block(_padded(struct.pack(">I", len(unicode_name) // 2) + unicode_name, 4))
    return record + _block(no_mask + no_blending_ranges + name + long_name)


def _merged(composition: Composition) -> bytes:
    """The flattened picture: colour blended with white, as Photoshop stores it, then transparency."""
    flat = flatten_exact(composition)
    alpha = flat[..., 3:]
    picture = to_bytes(np.concatenate([flat[..., :3] * alpha + (1 - alpha), alpha], axis=-1))
    rows = [_packed_rows(picture[..., channel]) for channel in range(4)]
    lengths = [len(row) for channel in rows for row in channel]
    return PACKED + np.array(lengths, ">u2").tobytes() + b"".join(row for channel in rows for row in channel)


def _packed_channels(image: Bytes) -> list[bytes]:
    """Transparency, red, green and blue of a layer, each with its compression and row lengths in front."""
    packed: list[bytes] = []
    for channel in (3, 0, 1, 2):
        rows = _packed_rows(image[..., channel])
        packed.append(PACKED + np.array([len(row) for row in rows], ">u2").tobytes() + b"".join(rows))
    return packed


def _packed_rows(channel: Bytes) -> list[bytes]:
    return [_packbits(row) for row in channel]


def _packbits(row: Bytes) -> bytes:
    """A row (W,), uint8, in the PackBits code: literals of up to 128 bytes and runs of up to 128 equal ones."""
    starts = np.concatenate([[0], np.flatnonzero(row[1:] != row[:-1]) + 1])
    lengths = np.diff(np.append(starts, len(row)))
    data = row.tobytes()
    packed = bytearray()
    done = 0
    long_runs = lengths >= MIN_RUN
    for start, length in zip(starts[long_runs].tolist(), lengths[long_runs].tolist(), strict=True):
        _add_literals(packed, data[done:start])
        done = start + length
        while length >= 2:
            packed.append(257 - min(length, MAX_PACKET))
            packed.append(data[start])
            length -= min(length, MAX_PACKET)
        if length:
            packed += bytes((0, data[start]))
    _add_literals(packed, data[done:])
    return bytes(packed)


def _add_literals(packed: bytearray, data: bytes) -> None:
    for start in range(0, len(data), MAX_PACKET):
        part = data[start : start + MAX_PACKET]
        packed.append(len(part) - 1)
        packed += part


def _block(data: bytes) -> bytes:
    """Data with its length in front."""
    return struct.pack(">I", len(data)) + data


def _padded(data: bytes, multiple: int) -> bytes:
    return data + bytes(-len(data) % multiple)
