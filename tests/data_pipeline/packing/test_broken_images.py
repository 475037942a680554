"""Image files with damage are refused, never filled up; what is only unusual is read."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from data_pipeline.packing.framing import Framing, fits_unchanged, frame_bytes
from tests.support.data import encoded, photo

RGB16 = Framing(image_size=16, image_channels=3)


def framed(data: bytes, framing: Framing = RGB16) -> np.ndarray:
    return frame_bytes(data, framing).pixels


@pytest.mark.parametrize(
    ("image_format", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "L"), ("PNG", "I;16")],
)
@pytest.mark.parametrize("exact", [False, True])
def test_a_hole_in_the_pixels_is_refused_not_filled(image_format: str, mode: str, exact: bool) -> None:
    image = Image.fromarray(photo(200))
    if mode == "I;16":
        data = encoded(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        data = encoded(image.convert(mode), image_format)
    framed(data)
    for place in (len(data) // 2, len(data) - 1002):
        with pytest.raises(ValueError, match="damaged"):
            framed(data[:place] + bytes(1000) + data[place + 1000 :], Framing(16, 3, exact=exact))


def test_any_flipped_bit_of_a_png_is_refused() -> None:
    data = encoded(photo(16)[:4, :4])
    for place in range(8, len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(ValueError, match=r"."):
            framed(bytes(damaged))


def test_a_whole_jpeg_with_something_behind_it_or_of_an_unusual_kind_is_read() -> None:
    image = photo(16)
    for settings in ({"progressive": True}, {"keep_rgb": True}, {"subsampling": 2}, {"restart_marker_blocks": 1}):
        data = encoded(image, "JPEG", quality=100, **settings)
        np.testing.assert_array_equal(framed(data + b"maker's notes"), framed(data))
        np.testing.assert_array_equal(framed(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("image_format", ["TIFF", "PNG", "JPEG"])
def test_whatever_a_damaged_header_does_to_pillow_is_a_refusal(image_format: str) -> None:
    data = encoded(photo(8), image_format)
    tried = range(len(data) - 200, len(data)) if image_format == "TIFF" else range(60)
    num_refused = 0
    for place in tried:
        for value in (0, 2, 255):
            damaged = data[:place] + bytes([value]) + data[place + 1 :]
            try:
                assert frame_bytes(damaged, Framing(8, 3)).pixels.shape == (8, 8, 3)
            except ValueError:
                num_refused += 1
            with contextlib.suppress(ValueError):
                assert isinstance(fits_unchanged(damaged, Framing(8, 3)), bool)
    assert num_refused > 0


def test_too_little_memory_for_one_image_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(image: Image.Image) -> None:
        raise MemoryError

    data = encoded(photo(16), "BMP")
    monkeypatch.setattr(Image.Image, "load", load)
    with pytest.raises(ValueError, match="MemoryError"):
        framed(data)
