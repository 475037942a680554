"""From a source image in any common mode to a square 8-bit array, or a refusal that says why.

Resize is Lanczos (a windowed sinc with antialiasing, in 8-bit sRGB values like the data sets the papers used): the
sharpest of the usual filters without visible aliasing. Bicubic blurs more, box and bilinear alias or blur. torch's
vectorised kernel computes it; with `exact` it is Pillow's, which rounds up to two values in a hundred the other way
and takes seven times as long. JPEGs at least eight times too large are decoded at a half, quarter or eighth of their
size, never below four times the target, unless `exact` is asked for; docs/DATA.md states the difference.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from data_pipeline.storage.codec import JPEG_SCALES, PNG_BIT_DEPTH_BYTE, check_png, fast_jpeg_pixels, fast_png_pixels

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".heic", ".heif"),
)
"""Names of images. HEIC is among them so that it is refused by name, as Pillow cannot decode it, and not passed over"""
MAX_PIXELS = 64_000_000
"""Largest image that is decoded; a header that claims more is taken for a decompression bomb"""
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
_JPEG_FORMATS = ("JPEG", "MPO")
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_WHITE_IS_ZERO = 258, 262, 0
_MIN_DECODED_SIZE = 4
"""Smallest size that a JPEG is decoded at, in multiples of the target"""
_PNG_ORIENTATION = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
"""Marks of the PNG chunks that may say how the image is to be turned"""


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
    with _refusing(), open_image(data) as image:
        pixels, source_size = _decoded(data, image, framing), image.size
    return Framed(_frame(pixels, framing), source_size)


def frame_array(array: np.ndarray, framing: Framing) -> Framed:
    """The same for (H, W), (H, W, 1) or (H, W, 3) uint8 pixels."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        raise ValueError(
            f"array must be uint8 of shape (H, W), (H, W, 1) or (H, W, 3), got {array.dtype} {array.shape}"
        )
    pixels = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    return Framed(_frame(_flat(pixels, framing), framing), (array.shape[1], array.shape[0]))


def open_image(data: bytes) -> Image.Image:
    """Read the header alone. ValueError for bombs, animations and formats that are not images."""
    with warnings.catch_warnings():
        # Our own limit is lower than the one Pillow warns at.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise ValueError(f"a decompression bomb: {error}") from error
        except Image.UnidentifiedImageError as error:
            raise ValueError(f"not an image of a known format ({', '.join(FORMATS)})") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"header claims {width}x{height} pixels, at most {MAX_PIXELS} are decoded: a decompression bomb?"
        )
    num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1 and image.format != "MPO":  # an MPO's first frame is the photo, the others are previews
        raise ValueError(f"an animation or stack of {num_frames} frames; only still images can be packed")
    return image


def fits_unchanged(data: bytes, framing: Framing) -> bool:
    """Whether a source is already a JPEG that decodes to exactly what framing asks for, so its bytes can be kept.

    ValueError if its header cannot be read.
    """
    with _refusing(), open_image(data) as image:
        mode = "RGB" if framing.image_channels == 3 else "L"
        size = (framing.image_size, framing.image_size)
        rotated = image.getexif().get(_EXIF_ORIENTATION, 1) != 1
        return image.format == "JPEG" and image.size == size and image.mode == mode and not rotated


def flatten(image: Image.Image, framing: Framing) -> Image.Image:
    """Any mode to 8-bit "RGB" or "L": 16 bits scaled, alpha composited, palette and CMYK converted. ValueError."""
    target = "RGB" if framing.image_channels == 3 else "L"
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode == "CMYK":
        image = _from_cmyk(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        backdrop = Image.new("RGBA", image.size, (framing.background,) * 3 + (255,))
        image = Image.alpha_composite(backdrop, image)
    if image.mode not in ("1", "L", "P", "RGB", "RGBA", "RGBX", "YCbCr"):
        raise ValueError(f"pixels of mode {image.mode} have no defined 8-bit range; convert the file to RGB or grey")
    return image if image.mode == target else image.convert("RGB").convert(target)


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says."""
    image.load()
    if image.getexif().get(_EXIF_ORIENTATION, 1) == 1:
        return image  # exif_transpose would copy it
    return ImageOps.exif_transpose(image)


@contextmanager
def _refusing() -> Iterator[None]:
    """Whatever Pillow raises over one file is a ValueError: the refusal of that file."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:  # damage surfaces in Pillow as a TypeError, a MemoryError or anything else
        raise ValueError(f"cannot be decoded: {str(error) or type(error).__name__}") from error


def _decoded(data: bytes, image: Image.Image, framing: Framing) -> np.ndarray:
    """Upright pixels of the wanted channels, (H, W) or (H, W, 3) uint8. image: the file's header, as Pillow read it."""
    if image.format in _JPEG_FORMATS:
        pixels = fast_jpeg_pixels(data, image, 1 if framing.exact else _jpeg_scale(image, framing.image_size))
        if pixels is not None and image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
            turned = Image.fromarray(pixels)
            turned.info = image.info  # where the orientation is
            return np.asarray(flatten(upright(turned), framing))
    else:
        if image.format == "PNG":
            _check_png(data, image)
        pixels = None if any(name in data for name in _PNG_ORIENTATION) else fast_png_pixels(data, image)
    if pixels is None:  # Pillow decodes whatever else it is, or says what is wrong
        return np.asarray(flatten(upright(image), framing))
    return _flat(pixels, framing)


def _check_png(data: bytes, image: Image.Image) -> None:
    check_png(data)
    if image.mode == "RGB" and data[PNG_BIT_DEPTH_BYTE] == 16 and "transparency" in image.info:
        # Pillow cuts colours to 8 bits, where other colours become the transparent one.
        raise ValueError("a 16-bit colour PNG with a transparent colour; convert it to 8 bits or to an alpha channel")


def _flat(pixels: np.ndarray, framing: Framing) -> np.ndarray:
    """Grey to RGB or RGB to grey, where need be: (H, W) or (H, W, 3) uint8."""
    if pixels.ndim == (3 if framing.image_channels == 3 else 2):
        return pixels
    return np.asarray(flatten(Image.fromarray(pixels), framing))


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


def _eight_bits(image: Image.Image) -> Image.Image:
    """Integer grey to 8 bits: v * 255 / 65535 rounded. Pillow's own convert() clips at 255 instead, to white.

    "LA" if one of the values is marked as transparent, else "L".
    """
    values = np.asarray(image).astype(np.int64)
    is_sixteen_bits = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
    if not is_sixteen_bits or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"32-bit integer pixels (mode {image.mode}) have no defined 8-bit range; convert the file")
    # Pillow leaves the values of a TIFF as they are stored: of 12 bits, or with 0 for white.
    tags = getattr(image, "tag_v2", {})
    largest = 2 ** tags.get(_TIFF_BITS, (16,))[0] - 1
    if tags.get(_TIFF_PHOTOMETRIC) == _TIFF_WHITE_IS_ZERO:
        values = largest - values
    grey = Image.fromarray(((values * 255 + largest // 2) // largest).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))


def _from_cmyk(image: Image.Image) -> Image.Image:
    """By the file's own profile where it has one, by plain subtraction where not."""
    profile: Any = image.info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError) as error:
            raise ValueError(f"its CMYK profile cannot be used ({error})") from error
        assert converted is not None
        return converted
    return image.convert("RGB")
