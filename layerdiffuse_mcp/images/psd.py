"""A writer of Photoshop documents: 8-bit RGB with named, placed, faded, blended and hidden layers.

Source: "Adobe Photoshop File Formats Specification" (2019). Numbers are big-endian, pixel rows are packed with
PackBits, which every reader of PSD understands. Beyond its layers a document takes about as many bytes as it is
long, and 4 a pixel of the canvas.
"""

import io
import struct

import numpy as np

from layerdiffuse_mcp.errors import InvalidRequest
from layerdiffuse_mcp.images.alpha import Bytes, to_bytes
from layerdiffuse_mcp.images.blend import MODES
from layerdiffuse_mcp.images.compose import Composition, Layer, Report, flattened, ignore

MAX_SIDE = 30_000
PACKED = struct.pack(">H", 1)
HIDDEN = 2
CHANNELS = {3: -1, 0: 0, 1: 1, 2: 2}
"""Of a layer, in the order of the file: our number of a channel and PSD's."""
MIN_RUN = 3  # shorter runs cost more as runs than inside a literal
MAX_PACKET = 128


def psd_bytes(composition: Composition, report: Report = ignore) -> bytes:
    """A PSD file of a composition: the lowest layer first, as given, and the flattened picture for simple readers.

    Raises:
        InvalidRequest: the canvas or a layer is larger than PSD allows.
    """
    sides = [composition.width, composition.height]
    sides += [side for layer in composition.layers for side in layer.image.shape[:2]]
    if max(sides) > MAX_SIDE:
        raise InvalidRequest(f"PSD allows {MAX_SIDE} pixels a side, this has {max(sides)}. Export .ora instead.")
    file = io.BytesIO()
    file.write(struct.pack(">4sH6xHIIHH", b"8BPS", 1, 4, composition.height, composition.width, 8, 3))
    file.write(_block(b"") + _block(b""))  # no palette, no resources
    pixels = sum(layer.image.shape[0] * layer.image.shape[1] for layer in composition.layers)
    share = pixels / (pixels + composition.width * composition.height)
    _write_layers(file, composition, lambda done: report(share * done))
    _write_merged(file, composition, lambda done: report(share + (1 - share) * done))
    return file.getvalue()


def _write_layers(file: io.BytesIO, composition: Composition, report: Report) -> None:
    """What the layers are, then their pixels; lengths are filled in once they are known."""
    start = file.tell()
    file.write(struct.pack(">II", 0, 0))
    # a negative count says that the merged picture's first extra channel is its transparency
    file.write(struct.pack(">h", -len(composition.layers)))
    places: list[int] = []
    for layer in composition.layers:
        places.append(file.tell() + struct.calcsize(">4iH"))
        file.write(_record(layer))
    for number, (layer, place) in enumerate(zip(composition.layers, places, strict=True)):
        lengths: list[int] = []
        for channel in CHANNELS:
            before = file.tell()
            file.write(PACKED)
            _write_rows(file, [layer.image[..., channel]])
            lengths.append(file.tell() - before)
            report((number + len(lengths) / len(CHANNELS)) / len(composition.layers))
        records = zip(CHANNELS.values(), lengths, strict=True)
        _fill_in(file, place, b"".join(struct.pack(">hI", kind, length) for kind, length in records))
    file.write(bytes((file.tell() - start) % 2))
    end = file.tell()
    file.write(_block(b""))  # no global mask
    _fill_in(file, start, struct.pack(">II", end + 4 - start - 4, end - start - 8))


def _record(layer: Layer) -> bytes:
    """What a layer is, without its pixels and their lengths."""
    height, width = layer.image.shape[:2]
    record = struct.pack(">4iH", layer.y, layer.x, layer.y + height, layer.x + width, len(CHANNELS))
    record += bytes(struct.calcsize(">hI") * len(CHANNELS))
    flags = 0 if layer.visible else HIDDEN
    record += struct.pack(">4s4sBBBx", b"8BIM", MODES[layer.blend].psd, round(layer.opacity * 255), 0, flags)

    plain = layer.label.encode("macroman", "replace")[:255]
    unicode_name = layer.label.encode("utf-16-be")
    no_mask = no_blending_ranges = _block(b"")
    name = _padded(bytes([len(plain)]) + plain, 4)
    long_name = b"8BIMluni" + _block(_padded(struct.pack(">I", len(unicode_name) // 2) + unicode_name, 4))
    return record + _block(no_mask + no_blending_ranges + name + long_name)


def _write_merged(file: io.BytesIO, composition: Composition, report: Report) -> None:
    """The flattened picture: colour blended with white, as Photoshop stores it, then transparency."""
    picture = np.empty((composition.height, composition.width, 4), np.uint8)
    for rows, band in flattened(composition):
        alpha = band[..., 3:]
        picture[rows] = to_bytes(np.concatenate([band[..., :3] * alpha + (1 - alpha), alpha], axis=-1))
        report(rows.stop / composition.height / 2)
    file.write(PACKED)
    _write_rows(file, [picture[..., channel] for channel in range(4)])
    report(1.0)


def _write_rows(file: io.BytesIO, channels: list[Bytes]) -> None:
    """The packed length of every row of every channel, then the rows."""
    table = file.tell()
    lengths = np.zeros(sum(len(channel) for channel in channels), ">u2")
    file.write(lengths.tobytes())
    for number, row in enumerate(row for channel in channels for row in channel):
        lengths[number] = file.write(_packbits(row))
    _fill_in(file, table, lengths.tobytes())


def _fill_in(file: io.BytesIO, place: int, data: bytes) -> None:
    file.seek(place)
    file.write(data)
    file.seek(0, io.SEEK_END)


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
