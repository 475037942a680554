"""Framing: the centred square at the size asked for, or a refusal that says why."""

import resource
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_pipeline.packing.decoding import MAX_PIXELS
from data_pipeline.packing.framing import Framing, frame_array, frame_bytes
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
