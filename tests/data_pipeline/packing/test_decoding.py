"""Every common image mode gives the right upright 8-bit pixels."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from data_pipeline.packing.framing import Framing, frame_bytes
from tests.support.data import encoded, photo

RGB16 = Framing(image_size=16, image_channels=3)


def framed(data: bytes, framing: Framing = RGB16) -> np.ndarray:
    return frame_bytes(data, framing).pixels


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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    upright = np.zeros((16, 16, 3), dtype=np.uint8)
    upright[:8, :8] = (250, 0, 0)
    upright[:8, 8:] = (0, 250, 0)
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = Image.fromarray(upright) if undo is None else Image.fromarray(upright).transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(framed(encoded(stored, "PNG", exif=exif)), upright)
    jpeg = framed(encoded(stored, "JPEG", exif=exif, quality=100, subsampling=0)).astype(int)
    assert np.abs(jpeg - upright).mean() < 3


@pytest.mark.parametrize(("dtype", "image_format"), [("<u2", "PNG"), ("<u2", "TIFF"), (">u2", "TIFF")])
def test_sixteen_bit_grey_is_scaled_not_clipped(dtype: str, image_format: str) -> None:
    values = np.linspace(0, 65535, 256).reshape(16, 16).round().astype(np.uint16)
    mode = "I;16" if dtype == "<u2" else "I;16B"
    data = encoded(Image.frombytes(mode, (16, 16), values.astype(dtype).tobytes()), image_format)
    pixels = framed(data, Framing(16, 1))[..., 0]
    np.testing.assert_array_equal(pixels, np.round(values / 257).astype(np.uint8))
    np.testing.assert_array_equal(framed(data), np.repeat(pixels[..., None], 3, axis=2))


def png16(values: np.ndarray, transparent: tuple[int, ...] = ()) -> bytes:
    """A PNG with 16 bits a channel; values: (H, W, C) uint16, C 1, 3 or 4."""
    color_type = {1: 0, 3: 2, 4: 6}[values.shape[2]]
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    marked = struct.pack(f">{len(transparent)}H", *transparent)
    chunks = [(b"IHDR", header), (b"tRNS", marked), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
        if data or name == b"IEND"
    )
    return b"\x89PNG\r\n\x1a\n" + body


def test_sixteen_bit_colour_is_scaled_not_clipped() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (16, 16, 3)).astype(np.uint16)
    assert np.abs(framed(png16(values)).astype(float) - values / 257).max() <= 1


def ink_profile() -> bytes:
    """An ICC profile of a printer whose magenta over yellow is a middle grey (L* 50), and whose black is black."""

    def tag(kind: bytes, body: bytes) -> bytes:
        data = kind + bytes(4) + body
        return data + bytes(-len(data) % 4)

    matrix = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    lightness = [[[[255, 0], [200, 0]], [[200, 0], [128, 0]]], [[[200, 0], [128, 0]], [[128, 0], [64, 0]]]]
    corners = b"".join(bytes([value, 128, 128]) for value in np.ravel(lightness))
    table = struct.pack(">4B", 4, 3, 2, 0) + matrix + bytes(range(256)) * 4 + corners + bytes(range(256)) * 3
    text = b"inks\0"
    tags = {
        b"desc": tag(b"desc", struct.pack(">I", len(text)) + text + bytes(78)),
        b"cprt": tag(b"text", text),
        b"wtpt": tag(b"XYZ ", struct.pack(">3i", 63190, 65536, 54061)),
        b"A2B0": tag(b"mft1", table),
    }
    offset, directory, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        directory += name + struct.pack(">II", offset + len(body), len(data))
        body += data
    size = offset + len(body)
    white = struct.pack(">3i", 63190, 65536, 54061)
    header = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += bytes(12) + b"acsp" + bytes(28) + white
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + directory + body


def test_cmyk_is_converted_plainly_or_by_its_profile() -> None:
    cmyk = Image.merge("CMYK", [Image.new("L", (16, 16), value) for value in (0, 255, 255, 0)])
    red = framed(encoded(cmyk, "JPEG", quality=100)).astype(int)
    np.testing.assert_allclose(red[8, 8], (255, 0, 0), atol=3)
    np.testing.assert_allclose(framed(encoded(cmyk, "TIFF")).astype(int)[8, 8], (255, 0, 0), atol=3)
    profile = ink_profile()
    for image_format in ("JPEG", "TIFF"):
        settings = {"quality": 100} if image_format == "JPEG" else {}
        pixels = framed(encoded(cmyk, image_format, icc_profile=profile, **settings)).astype(int)
        np.testing.assert_allclose(pixels[8, 8], (119, 119, 119), atol=3)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with pytest.raises(ValueError, match="profile"):
        framed(encoded(cmyk, "TIFF", icc_profile=srgb))


def test_webp_bmp_and_ppm_are_read() -> None:
    image = photo(16)
    for image_format, settings in (("WEBP", {"lossless": True}), ("BMP", {}), ("PPM", {}), ("TIFF", {})):
        np.testing.assert_array_equal(framed(encoded(image, image_format, **settings)), image)
    assert Image.open(io.BytesIO(encoded(image, "WEBP"))).format == "WEBP"


def tiff_grey(values: np.ndarray, num_bits: int, photometric: int) -> bytes:
    """An uncompressed TIFF of (16, 16) values of 12 or 16 bits; photometric: 0 if zero is white, 1 if it is black."""
    bits = "".join(f"{value:0{num_bits}b}" for value in values.ravel())
    raw = int(bits, 2).to_bytes(len(bits) // 8)
    if num_bits == 16:
        raw = values.astype("<u2").tobytes()
    tags = {256: 16, 257: 16, 258: num_bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 16, 279: len(raw)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(raw)) + raw + struct.pack("<H", len(tags)) + directory + bytes(4)


@pytest.mark.parametrize(("num_bits", "photometric"), [(12, 1), (16, 1), (16, 0)])
def test_grey_tiffs_of_more_than_eight_bits_are_scaled_by_their_own_range(num_bits: int, photometric: int) -> None:
    largest = 2**num_bits - 1
    values = np.linspace(0, largest, 256).round().astype(int).reshape(16, 16)
    expected = np.rint(values * 255 / largest).astype(int)
    pixels = framed(tiff_grey(values, num_bits, photometric), Framing(16, 1))[..., 0]
    np.testing.assert_array_equal(pixels, expected if photometric else 255 - expected)


def test_a_transparent_value_of_sixteen_bits_is_composited_or_refused() -> None:
    grey = np.full((16, 16, 1), 300, dtype=np.uint16)
    grey[:8] = 301
    pixels = framed(png16(grey, transparent=(300,)), Framing(16, 1))[..., 0]
    np.testing.assert_array_equal(pixels, np.repeat([[1], [255]], 8, axis=0).repeat(16, axis=1))
    with pytest.raises(ValueError, match="16-bit colour PNG with a transparent colour"):
        framed(png16(np.zeros((16, 16, 3), dtype=np.uint16), transparent=(0, 0, 0)))


def test_avif_is_decoded_and_heic_is_named() -> None:
    image = photo(16)
    assert np.abs(framed(encoded(image, "AVIF", quality=100, subsampling="4:4:4")).astype(int) - image).mean() < 2
    with pytest.raises(ValueError, match=r"known format .*AVIF"):
        framed(b"\0\0\0\x18ftypheic" + bytes(100))
