"""The fast decoders give Pillow's pixels; the fast resize is its Lanczos, to two levels."""

import hashlib
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from common.code import ROOT
from data_pipeline.packing import decoding
from data_pipeline.packing.framing import Framing, frame_array, frame_bytes
from data_pipeline.storage import codec
from tests.support.data import encoded, photo

RGB16 = Framing(image_size=16, image_channels=3)


def framed(data: bytes, framing: Framing = RGB16) -> np.ndarray:
    return frame_bytes(data, framing).pixels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("width", "height", "size"), [(512, 512, 64), (301, 777, 64), (50, 40, 64), (500, 65, 64)])
def test_the_fast_resize_is_pillows_lanczos_to_two_levels(width: int, height: int, size: int, channels: int) -> None:
    data = encoded(photo(width, height=height))
    fast, exact = (framed(data, Framing(size, channels, exact)).astype(int) for exact in (False, True))
    assert np.abs(fast - exact).max() <= 2
    assert np.mean(fast != exact) < 0.03
    flat = framed(encoded(np.full((height, width, 3), 201, dtype=np.uint8)), Framing(size, channels))
    assert (flat == 201).all()


@pytest.mark.parametrize("size", [64, 32, 16])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_decoding_a_large_jpeg_at_part_of_its_size_costs_little(size: int, subsampling: str) -> None:
    data = encoded(photo(512), "JPEG", subsampling=subsampling)
    fast, exact = framed(data, Framing(size, 3)), framed(data, Framing(size, 3, exact=True))
    assert not np.array_equal(fast, exact)
    assert peak_signal_noise_ratio(exact, fast) > 50
    assert np.abs(fast.astype(int) - exact).max() <= 4


@pytest.mark.parametrize(
    ("width", "height", "scale"), [(511, 2000, 1), (512, 2000, 2), (1023, 1023, 2), (1024, 1031, 4), (3001, 2048, 8)]
)
def test_a_jpeg_is_decoded_at_no_less_than_four_times_the_size(
    width: int, height: int, scale: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def seen(data: bytes, image: Image.Image, scale: int) -> np.ndarray | None:
        pixels = codec.fast_jpeg_pixels(data, image, scale)
        shapes.append(None if pixels is None else pixels.shape)
        return pixels

    monkeypatch.setattr(decoding, "fast_jpeg_pixels", seen)
    data = encoded(np.zeros((height, width, 3), dtype=np.uint8), "JPEG")
    source_size = frame_bytes(data, Framing(64, 3)).source_size
    frame_bytes(data, Framing(64, 3, exact=True))
    assert source_size == (width, height)
    assert shapes == [(-(-height // scale), -(-width // scale), 3), (height, width, 3)]


@pytest.mark.parametrize(
    "settings",
    [
        {"subsampling": "4:2:0"},
        {"subsampling": "4:2:2"},
        {"progressive": True},
        {"restart_marker_rows": 1},
        {"keep_rgb": True},
        {"orientation": 6},
        {"orientation": 4, "exact": True},
        {"mode": "L"},
        {"mode": "CMYK"},
    ],
)
def test_the_fast_jpeg_decoder_gives_pillows_pixels(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(photo(45, height=61)).convert(settings.pop("mode", "RGB"))
    exif = Image.Exif()
    exif[0x0112] = settings.pop("orientation", 1)
    exact = settings.pop("exact", False)
    data = encoded(image, "JPEG", exif=exif, **settings)
    fast = [framed(data, Framing(20, channels, exact)) for channels in (1, 3)]
    monkeypatch.setattr(decoding, "fast_jpeg_pixels", lambda *_: None)
    slow = [framed(data, Framing(20, channels, exact)) for channels in (1, 3)]
    for one, other in zip(fast, slow, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_jpeg_with_odd_but_harmless_bytes_is_packed_and_a_short_one_refused() -> None:
    data = encoded(photo(64), "JPEG")
    expected = framed(data)
    np.testing.assert_array_equal(framed(data[:-2] + bytes(9) + data[-2:]), expected)
    np.testing.assert_array_equal(framed(data + b"thumbnail"), expected)
    with pytest.raises(ValueError, match="truncated"):
        framed(data[: len(data) // 2])


@pytest.mark.parametrize("kind", ["RGB", "L", "P", "RGBA", "transparent", "turned", "interlaced-like filters"])
def test_the_fast_png_decoder_gives_pillows_pixels(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(photo(40, height=56))
    settings: dict[str, object] = {"compress_level": 9} if kind == "interlaced-like filters" else {}
    if kind in ("L", "P", "RGBA"):
        image = image.convert(kind)
    if kind == "transparent":
        settings["transparency"] = tuple(int(value) for value in photo(40, height=56)[0, 0])
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        settings["exif"] = exif
    data = encoded(image, "PNG", **settings)
    fast = framed(data)
    monkeypatch.setattr(codec, "pyspng", None)
    np.testing.assert_array_equal(fast, framed(data))


@pytest.mark.parametrize("kernel", ["avx2", "default"])
def test_the_fast_resize_gives_the_same_bits_on_lesser_processors(kernel: str) -> None:
    program = (
        "import hashlib; from data_pipeline.packing.framing import *; from tests.support.data import photo;"
        "here = [frame_array(photo(size), Framing(64, 3)).pixels for size in (41, 200, 513)];"
        "print(*(hashlib.sha256(pixels).hexdigest() for pixels in here))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"ATEN_CPU_CAPABILITY": kernel},
        capture_output=True,
        text=True,
        check=True,
    )
    here = [frame_array(photo(size), Framing(64, 3)).pixels for size in (41, 200, 513)]
    assert printed.stdout.split() == [hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in here]
