"""From an image file in any common mode to upright 8-bit pixels, or a refusal that says why."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from data_pipeline.storage.codec import PNG_BIT_DEPTH_BYTE, check_png, fast_jpeg_pixels, fast_png_pixels

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 64_000_000
"""Largest image that is decoded; a header that claims more is taken for a decompression bomb"""
EXIF_ORIENTATION = 0x0112
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
_JPEG_FORMATS = ("JPEG", "MPO")
_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_WHITE_IS_ZERO = 258, 262, 0
_PNG_ORIENTATION = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
"""Marks of the PNG chunks that may say how the image is to be turned"""


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


def flatten(image: Image.Image, channels: int, background: int) -> Image.Image:
    """Any mode to 8-bit "RGB" or "L": 16 bits scaled, alpha composited, palette and CMYK converted. ValueError."""
    target = "RGB" if channels == 3 else "L"
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.mode == "CMYK":
        image = _from_cmyk(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        backdrop = Image.new("RGBA", image.size, (background,) * 3 + (255,))
        image = Image.alpha_composite(backdrop, image)
    if image.mode not in ("1", "L", "P", "RGB", "RGBA", "RGBX", "YCbCr"):
        raise ValueError(f"pixels of mode {image.mode} have no defined 8-bit range; convert the file to RGB or grey")
    return image if image.mode == target else image.convert("RGB").convert(target)


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF orientation says."""
    image.load()
    if image.getexif().get(EXIF_ORIENTATION, 1) == 1:
        return image  # exif_transpose would copy it
    return ImageOps.exif_transpose(image)


@contextmanager
def refusing() -> Iterator[None]:
    """Whatever Pillow raises over one file is a ValueError: the refusal of that file."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:  # damage surfaces in Pillow as a TypeError, a MemoryError or anything else
        raise ValueError(f"cannot be decoded: {str(error) or type(error).__name__}") from error


def decode(data: bytes, image: Image.Image, channels: int, background: int, jpeg_scale: int) -> np.ndarray:
    """Upright pixels of `channels` channels, 1 or 3: (H, W) or (H, W, 3) uint8. ValueError if they cannot be right.

    image: the file's header, as open_image gives it. background: grey value under transparent pixels.
    jpeg_scale: of JPEG_SCALES; H and W of a JPEG are divided by it.
    """
    if image.format in _JPEG_FORMATS:
        pixels = fast_jpeg_pixels(data, image, jpeg_scale)
        if pixels is not None and image.getexif().get(EXIF_ORIENTATION, 1) != 1:
            turned = Image.fromarray(pixels)
            turned.info = image.info  # where the orientation is
            return np.asarray(flatten(upright(turned), channels, background))
    else:
        if image.format == "PNG":
            _check_png(data, image)
            _scale_transparent_value(data, image)
        pixels = None if any(name in data for name in _PNG_ORIENTATION) else fast_png_pixels(data, image)
    if pixels is None:  # Pillow decodes whatever else it is, or says what is wrong
        return np.asarray(flatten(upright(image), channels, background))
    return with_channels(pixels, channels)


def _check_png(data: bytes, image: Image.Image) -> None:
    check_png(data)
    if image.mode == "RGB" and data[PNG_BIT_DEPTH_BYTE] == 16 and "transparency" in image.info:
        # Pillow cuts colours to 8 bits, where other colours become the transparent one.
        raise ValueError("a 16-bit colour PNG with a transparent colour; convert it to 8 bits or to an alpha channel")


def _scale_transparent_value(data: bytes, image: Image.Image) -> None:
    """Pillow spreads grey of 2 and 4 bits over 0 to 255, but not the value that is marked as transparent."""
    transparent, num_bits = image.info.get("transparency"), data[PNG_BIT_DEPTH_BYTE]
    if image.mode == "L" and num_bits in (2, 4) and isinstance(transparent, int):
        image.info["transparency"] = transparent * 255 // (2**num_bits - 1)


def with_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Grey to RGB or RGB to grey, where need be: (H, W) or (H, W, 3) uint8."""
    if pixels.ndim == (3 if channels == 3 else 2):
        return pixels
    return np.asarray(flatten(Image.fromarray(pixels), channels, background=255))


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
