"""Pixels of rare kinds of image files."""

import struct
import zlib

import numpy as np
import pytest

from data_pipeline.packing.framing import Framing, frame_bytes


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def grey_png(value: int, num_bits: int, transparent: int) -> bytes:
    """A PNG of 16x16 equal pixels of fewer than eight bits, one value of which is marked as transparent."""
    byte = sum(value << shift for shift in range(0, 8, num_bits))
    header = struct.pack(">IIBBBBB", 16, 16, num_bits, 0, 0, 0, 0)
    rows = (b"\0" + bytes([byte] * (2 * num_bits))) * 16
    chunks = ((b"IHDR", header), (b"tRNS", struct.pack(">H", transparent)), (b"IDAT", zlib.compress(rows)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("num_bits", "value"), [(1, 1), (2, 1), (2, 3), (4, 7), (4, 15)])
def test_a_transparent_grey_of_few_bits_is_composited(num_bits: int, value: int) -> None:
    on_black = Framing(16, 1, background=0)
    assert (frame_bytes(grey_png(value, num_bits, transparent=value), on_black).pixels == 0).all()
    opaque = frame_bytes(grey_png(value, num_bits, transparent=0), on_black).pixels
    np.testing.assert_array_equal(opaque, value * 255 // (2**num_bits - 1))
