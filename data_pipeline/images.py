"""From a source image in any common mode to a square 8-bit array, or a refusal that says why.

Resize is Lanczos (a windowed sinc with antialiasing, in 8-bit sRGB values like the data sets the papers used): the
sharpest of Pillow's filters without visible aliasing. Bicubic blurs more, box and bilinear alias or blur. Unless
`exact` is asked for, an image at least four times too large is first halved cheaply, by the JPEG decoder or a box
filter, down to no less than twice the target; docs/DATA.md states the difference.
"""

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from data_pipeline.codec import DECODE_ERRORS, fast_png_pixels

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2")
MAX_PIXELS = 64_000_000
"""Largest image that is decoded; a header that claims more is taken for a decompression bomb"""
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
_JPEG_FORMATS = ("JPEG", "MPO")
_EXIF_ORIENTATION = 0x0112
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
    """Decode at full size and apply Lanczos to every source pixel, several times slower"""
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
    try:
        with open_image(data) as image:
            source_size = image.size
            if not framing.exact and image.format in _JPEG_FORMATS:
                _draft(image, framing.image_size)
            plain = image.format == "PNG" and not any(name in data for name in _PNG_ORIENTATION)
            pixels = fast_png_pixels(data, image) if plain else None
            decoded = upright(image) if pixels is None else Image.fromarray(pixels)
            return Framed(_frame(flatten(decoded, framing), framing), source_size)
    except DECODE_ERRORS as error:
        raise ValueError(f"{error}" or type(error).__name__) from error


def frame_array(array: np.ndarray, framing: Framing) -> Framed:
    """The same for (H, W), (H, W, 1) or (H, W, 3) uint8 pixels."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        raise ValueError(
            f"array must be uint8 of shape (H, W), (H, W, 1) or (H, W, 3), got {array.dtype} {array.shape}"
        )
    image = Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array)
    return Framed(_frame(flatten(image, framing), framing), image.size)


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
    """Whether a source is already a JPEG that decodes to exactly what framing asks for, so its bytes can be kept."""
    with open_image(data) as image:
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


def _draft(image: Image.Image, image_size: int) -> None:
    """Let the JPEG decoder halve the image, down to no less than twice the target size."""
    shorter = min(image.size)
    wanted = [2 * image_size * side // shorter for side in image.size]
    image.draft(None, (wanted[0], wanted[1]))


def _frame(image: Image.Image, framing: Framing) -> np.ndarray:
    width, height = image.size
    side, size = min(width, height), framing.image_size
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    if side == size:
        image = image.crop(box)
    else:
        gap = None if framing.exact else 2.0
        image = image.resize((size, size), Image.Resampling.LANCZOS, box=box, reducing_gap=gap)
    return np.asarray(image).reshape(size, size, framing.image_channels)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Integer grey to 8 bits: v * 255 / 65535 rounded. Pillow's own convert() clips at 255 instead, to white."""
    values = np.asarray(image).astype(np.int64)
    is_sixteen_bits = image.mode.startswith("I;16") or image.format in ("PNG", "PPM")
    if not is_sixteen_bits or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"32-bit integer pixels (mode {image.mode}) have no defined 8-bit range; convert the file")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


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
