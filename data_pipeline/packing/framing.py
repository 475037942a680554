"""From a source image to a square of the size asked for.

Resize is Lanczos (a windowed sinc with antialiasing, in 8-bit sRGB values like the data sets the papers used): the
sharpest of the usual filters without visible aliasing. Bicubic blurs more, box and bilinear alias or blur. torch's
vectorised kernel computes it; with `exact` it is Pillow's, which rounds up to two values in a hundred the other way
and takes seven times as long. JPEGs at least eight times too large are decoded at a half, quarter or eighth of their
size, never below four times the target, unless `exact` is asked for; docs/DATA.md states the difference.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from data_pipeline.packing.decoding import EXIF_ORIENTATION, decode, open_image, refusing, with_channels
from data_pipeline.storage.codec import JPEG_SCALES

_MIN_DECODED_SIZE = 4
"""Smallest size that a JPEG is decoded at, in multiples of the target"""


@dataclass(frozen=True)
class Framing:
    """How an image is brought to size."""

    image_size: int
    """Side of the result, pixels"""
    image_channels: int
    """3 for RGB, 1 for grey"""
    exact: bool = False
    """Decode at full size and resize by Pillow's Lanczos to the bit, several times slower"""
    background: int = 255
    """Grey value that transparent pixels are composited over, 0 to 255"""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the result."""
        return (self.image_size, self.image_size, self.image_channels)

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= 4096:
            raise ValueError(f"image_size must lie in [1, 4096], got {self.image_size}")
        if self.image_channels not in (1, 3):
            raise ValueError(f"image_channels must be 1 (grey) or 3 (RGB), got {self.image_channels}")
        if not 0 <= self.background <= 255:
            raise ValueError(f"background must lie in [0, 255], got {self.background}")


@dataclass(frozen=True)
class Framed:
    """A source image brought to size."""

    pixels: np.ndarray
    """(image_size, image_size, image_channels) uint8"""
    source_size: tuple[int, int]
    """Width and height of the source, before any rotation"""


def frame_bytes(data: bytes, framing: Framing) -> Framed:
    """Decode, rotate by EXIF, flatten, crop to the centred square and resize. ValueError with the reason if refused."""
    with refusing(), open_image(data) as image:
        scale = 1 if framing.exact else _jpeg_scale(image, framing.image_size)
        pixels = decode(data, image, framing.image_channels, framing.background, scale)
        source_size = image.size
    return Framed(_frame(pixels, framing), source_size)


def frame_array(array: np.ndarray, framing: Framing) -> Framed:
    """The same for (H, W), (H, W, 1) or (H, W, 3) uint8 pixels."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        raise ValueError(
            f"array must be uint8 of shape (H, W), (H, W, 1) or (H, W, 3), got {array.dtype} {array.shape}"
        )
    pixels = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return Framed(_frame(with_channels(pixels, framing.image_channels), framing), (array.shape[1], array.shape[0]))


def fits_unchanged(data: bytes, framing: Framing) -> bool:
    """Whether a source is already a JPEG that decodes to exactly what framing asks for, so its bytes can be kept.

    ValueError if its header cannot be read.
    """
    with refusing(), open_image(data) as image:
        mode = "RGB" if framing.image_channels == 3 else "L"
        size = (framing.image_size, framing.image_size)
        rotated = image.getexif().get(EXIF_ORIENTATION, 1) != 1
        return image.format == "JPEG" and image.size == size and image.mode == mode and not rotated


def _jpeg_scale(image: Image.Image, image_size: int) -> int:
    """The strongest reduction by the JPEG decoder that leaves enough for Lanczos to decide."""
    return next(
        scale for scale in JPEG_SCALES if scale == 1 or min(image.size) >= scale * _MIN_DECODED_SIZE * image_size
    )


def _frame(pixels: np.ndarray, framing: Framing) -> np.ndarray:
    """Centred square of (H, W) or (H, W, 3) uint8 pixels, resized: (size, size, channels) uint8."""
    height, width = pixels.shape[:2]
    side, size = min(width, height), framing.image_size
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side]
    if side == size:
        framed = square
    elif framing.exact:
        # Cropped first: given a box instead, Pillow's filter would reach over the square's border.
        framed = np.asarray(Image.fromarray(square).resize((size, size), Image.Resampling.LANCZOS))
    else:
        framed = _resized(square, size)
    return np.ascontiguousarray(framed).reshape(size, size, framing.image_channels)


def _resized(square: np.ndarray, size: int) -> np.ndarray:
    """Lanczos of (S, S) or (S, S, 3) uint8 pixels, within 2 of Pillow's."""
    import torch  # takes seconds to import

    # Integer arithmetic, hence the same bits on every processor and for any number of threads.
    writable = square if square.flags.writeable else square.copy()
    # With these strides of a batch of one torch sees channels_last, and need not cut planes and join them again.
    batch = torch.from_numpy(writable.reshape(1, *square.shape[:2], -1)).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(batch, size=(size, size), mode="lanczos", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()
