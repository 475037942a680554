"""Every common image mode gives the right 8-bit pixels, or a refusal that says why."""

import io
import resource
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from data_pipeline.packing.framing import MAX_PIXELS, Framing, frame_array, frame_bytes
from tests.support.data import encoded, photo

RGB16 = Framing(image_size=16, image_channels=3)


def framed(data: bytes, framing: Framing = RGB16) -> np.ndarray:
    return frame_bytes(data, framing).pixels


def test_an_image_of_the_right_size_is_not_touched() -> None:
    image = photo(16)
    np.testing.assert_array_equal(framed(encoded(image)), image)


def test_the_centred_square_is_taken() -> None:
    image = np.zeros((16, 40, 3), dtype=np.uint8)
    image[:, 12:28] = photo(16)
    np.testing.assert_array_equal(framed(encoded(image)), image[:, 12:28])
    tall = image.transpose(1, 0, 2)
    np.testing.assert_array_equal(framed(encoded(np.ascontiguousarray(tall))), tall[12:28])


def test_exact_resize_is_lanczos_with_antialiasing() -> None:
    image = photo(150)
    expected = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(framed(encoded(image), Framing(16, 3, exact=True)), expected)


def test_a_checkerboard_finer_than_the_result_becomes_grey_not_a_pattern() -> None:
    board = np.indices((128, 128)).sum(axis=0) % 2 * 255
    data = encoded(np.repeat(board[..., None], 3, axis=2).astype(np.uint8))
    for exact in (False, True):
        inner = framed(data, Framing(16, 3, exact=exact))[2:-2, 2:-2].astype(int)
        assert np.abs(inner - 127).max() <= 3


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


def test_alpha_is_composited() -> None:
    rgba = np.zeros((16, 16, 4), dtype=np.uint8)
    rgba[..., 0] = 200
    rgba[:8, :, 3] = 255
    rgba[8:, :, 3] = 128
    data = encoded(Image.fromarray(rgba))
    pixels = framed(data)
    np.testing.assert_array_equal(pixels[0, 0], (200, 0, 0))
    np.testing.assert_allclose(pixels[15, 0], (227, 127, 127), atol=1)
    on_black = framed(data, Framing(16, 3, background=0))
    np.testing.assert_allclose(on_black[15, 0], (100, 0, 0), atol=1)
    rgba[..., 3] = 0
    assert (framed(encoded(Image.fromarray(rgba))) == 255).all()


def test_grey_with_alpha_and_palette_with_transparency_are_composited() -> None:
    grey = Image.merge("LA", (Image.new("L", (16, 16), 10), Image.new("L", (16, 16), 0)))
    assert (framed(encoded(grey)) == 255).all()
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    np.testing.assert_array_equal(framed(encoded(palette))[0, 0], (200, 100, 50))
    assert (framed(encoded(palette, "PNG", transparency=1)) == 255).all()
    assert (framed(encoded(palette, "GIF", transparency=1)) == 255).all()


def test_grey_one_bit_and_colour_convert_both_ways() -> None:
    grey = photo(16)[..., 0]
    np.testing.assert_array_equal(framed(encoded(grey)), np.repeat(grey[..., None], 3, axis=2))
    bits = Image.fromarray(grey > 128)
    assert set(np.unique(framed(encoded(bits)))) == {0, 255}
    colour = photo(16)
    luma = np.asarray(Image.fromarray(colour).convert("L"))[..., None]
    np.testing.assert_array_equal(framed(encoded(colour), Framing(16, 1)), luma)


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


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "known format"),
        (b"<html>not found</html>", "known format"),
        (encoded(photo(32))[:400], "."),
        (encoded(photo(64), "JPEG")[:600], "."),
        (encoded(Image.new("F", (16, 16)), "TIFF"), "mode F"),
        (encoded(Image.new("I", (16, 16), 1 << 20), "TIFF"), "32-bit"),
    ],
)
def test_what_cannot_be_right_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        framed(data)


def test_animations_are_refused() -> None:
    frames = [Image.fromarray(photo(16, seed)) for seed in range(3)]
    with pytest.raises(ValueError, match="3 frames"):
        framed(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))


def bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    rows = zlib.compress(b"\0" * 10_000)
    data = b"IDAT" + rows
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", len(rows)) + data + struct.pack(">I", zlib.crc32(data))
    )  # fmt: skip


def jpeg_bomb(width: int, height: int) -> bytes:
    data = encoded(photo(16), "JPEG")
    place = data.index(b"\xff\xc0") + 5  # the frame header's height and width
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


@pytest.mark.parametrize(
    "data",
    [
        *(bomb(side, side) for side in (8001, 10_000, 20_000, 2_000_000_000)),
        jpeg_bomb(8001, 8001),
        jpeg_bomb(65535, 65535),
    ],
    ids=["png 8001", "png 10000", "png 20000", "png 2000000000", "jpeg 8001", "jpeg 65535"],
)
def test_decompression_bombs_are_refused_from_the_header(data: bytes) -> None:
    assert MAX_PIXELS < 8001**2
    before_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with pytest.raises(ValueError, match=r"bomb|limit|large|broken"):
        framed(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before_bytes < 20e6


def test_arrays_are_framed_like_files() -> None:
    image = photo(40)
    np.testing.assert_array_equal(frame_array(image, RGB16).pixels, framed(encoded(image)))
    grey = image[..., :1]
    np.testing.assert_array_equal(
        frame_array(grey, Framing(40, 1)).pixels, frame_array(grey[..., 0], Framing(40, 1)).pixels
    )
    with pytest.raises(ValueError, match="uint8"):
        frame_array(image.astype(np.float32), RGB16)


@pytest.mark.parametrize(
    "settings", [{"image_size": 0}, {"image_size": 5000}, {"image_channels": 2}, {"background": 300}]
)
def test_wrong_framings_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        Framing(**{"image_size": 8, "image_channels": 3, **settings})


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
