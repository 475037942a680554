"""Encoding and decoding of stored samples: png, jpg (libjpeg-turbo) and npy.

A sample's size is read from its header and compared before a pixel is decoded, so a hostile file costs nothing.
"""

import io
import re
import struct
import zlib
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image

try:
    import pyspng
except ImportError:  # no wheel for this platform: Pillow decodes to the same pixels, more slowly
    pyspng = None

Encoding = Literal["png", "jpg", "npy"]
EXTENSIONS = ("png", "jpg", "jpeg", "npy")
DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, struct.error, zlib.error)
JPEG_SCALES = (8, 4, 2, 1)
"""By what a JPEG decoder can divide the size of an image at no cost, the strongest first"""
_JPEG_COLORSPACE = {1: "GRAY", 3: "RGB"}
_JPEG_MODE = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
PNG_BIT_DEPTH_BYTE = 24
_PNG_SIGNATURE_BYTES = 8
_BIT_BUFFER_BYTES = 8
_PADDING_COMPLAINT = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_PNG_MODE = {1: "L", 3: "RGB"}


def encode(image: np.ndarray, encoding: Encoding, jpeg_quality: int = 95) -> bytes:
    """Bytes of an (H, W, C) uint8 image, C 1 or 3; the same bytes for the same image.

    JPEG keeps colour at full resolution (4:4:4): faces have small saturated details, such as lips, that 4:2:0 smears.
    """
    if encoding == "jpg":
        channels = image.shape[2]
        subsampling = "444" if channels == 3 else "Gray"
        pixels = np.ascontiguousarray(image)
        return simplejpeg.encode_jpeg(pixels, jpeg_quality, _JPEG_COLORSPACE[channels], subsampling, fastdct=False)
    buffer = io.BytesIO()
    if encoding == "npy":
        np.save(buffer, np.ascontiguousarray(image), allow_pickle=False)
    else:
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def decode_into(data: bytes, extension: str, out: np.ndarray) -> None:
    """Decode a stored sample into `out`, (H, W, C) uint8 of any strides; fastest in C order.

    Raises ValueError if the sample is undecodable or has another size, before its pixels are decoded.
    """
    try:
        if extension in ("jpg", "jpeg"):
            _decode_jpeg(data, out)
        elif extension == "png":
            _decode_png(data, out)
        elif extension == "npy":
            _decode_npy(data, out)
        else:
            raise ValueError(f"extension {extension!r} is not one of {', '.join(EXTENSIONS)}")
    except DECODE_ERRORS as error:
        raise ValueError(f"{error}" or type(error).__name__) from error


def fast_jpeg_pixels(data: bytes, image: Image.Image, scale: int) -> np.ndarray | None:
    """Pixels of a grey or colour JPEG at 1/scale of its size, rounded up: (H, W[, 3]) uint8. scale: of JPEG_SCALES.

    image: its header, as Pillow opened it. None if the file is of another kind, such as CMYK: Pillow then decodes it.
    Raises ValueError for damage, also where Pillow would fill the hole with grey and say nothing.
    """
    if image.mode not in _JPEG_MODE:
        return None
    height, width = -(-image.height // scale), -(-image.width // scale)
    try:
        if simplejpeg.decode_jpeg_header(data)[:2] != (image.height, image.width):
            return None
    except ValueError:
        return None  # an unusual kind, such as odd subsampling, which libjpeg-turbo does not name
    options = {"fastdct": False, "fastupsample": False, "min_height": height, "min_width": width}
    try:
        pixels = simplejpeg.decode_jpeg(data, _JPEG_MODE[image.mode], **options)
    except ValueError as error:
        unpadded = _without_padding(data, str(error))
        if unpadded is None:
            raise ValueError(f"its JPEG data are damaged or truncated: {error}") from error
        return fast_jpeg_pixels(unpadded, image, scale)
    return None if image.mode == "CMYK" else pixels.reshape((height, width, 3)[: 3 if image.mode == "RGB" else 2])


def _without_padding(data: bytes, complaint: str) -> bytes | None:
    """A JPEG without the zeros that some writers put before its end marker, if the decoder complains of just these.

    A hole in the pixels leaves other bytes over, or is larger than what is left over and in the decoder's bit buffer.
    """
    found = _PADDING_COMPLAINT.search(complaint)
    if not found:
        return None
    fewest = int(found[1])
    zeros = re.search(rb"(?<=[^\0])\0{%d,%d}(?=\xff\xd9)" % (fewest, fewest + _BIT_BUFFER_BYTES), data)
    return data[: zeros.start()] + data[zeros.end() :] if zeros else None


def fast_png_pixels(data: bytes, image: Image.Image) -> np.ndarray | None:
    """Pixels of a plain 8-bit RGB or grey PNG by libspng, twice as fast as Pillow and equal to it: (H, W[, 3]) uint8.

    image: its header, as Pillow opened it. None if the file is of another kind, or damaged: Pillow then says how.
    """
    plain = image.format == "PNG" and image.mode in ("RGB", "L") and "transparency" not in image.info
    if pyspng is None or not plain or data[PNG_BIT_DEPTH_BYTE] != 8:
        return None
    try:
        pixels: np.ndarray = pyspng.load(data)
    except (RuntimeError, ValueError):
        return None
    shape = (image.height, image.width, 3)[: 3 if image.mode == "RGB" else 2]
    return pixels.reshape(shape) if pixels.dtype == np.uint8 and pixels.size == np.prod(shape) else None


def check_png(data: bytes) -> None:
    """ValueError unless all chunks of a PNG are there and agree with their CRC-32: no decoder compares them all."""
    start, kind = _PNG_SIGNATURE_BYTES, b""
    while kind != b"IEND":
        length = int.from_bytes(data[start : start + 4])
        kind, end = data[start + 4 : start + 8], start + 8 + length
        if end + 4 > len(data):
            raise ValueError("the PNG ends before its last chunk")
        if zlib.crc32(memoryview(data)[start + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise ValueError(f"the PNG is damaged: the checksum of its chunk {kind!r} at byte {start} does not fit")
        start = end + 4


def _decode_jpeg(data: bytes, out: np.ndarray) -> None:
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    _check_size((height, width), out)
    channels = out.shape[2]
    # The fast flags of the decoder change pixels and bring nothing measurable.
    if out.flags.c_contiguous:
        simplejpeg.decode_jpeg(data, _JPEG_COLORSPACE[channels], fastdct=False, fastupsample=False, buffer=out)
        return
    pixels = simplejpeg.decode_jpeg(data, _JPEG_COLORSPACE[channels], fastdct=False, fastupsample=False)
    out[...] = pixels.reshape(out.shape)


def _decode_png(data: bytes, out: np.ndarray) -> None:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        _check_size((image.height, image.width), out)
        if image.mode != _PNG_MODE[out.shape[2]]:
            raise ValueError(f"PNG mode {image.mode}, expected {_PNG_MODE[out.shape[2]]}")
        pixels = fast_png_pixels(data, image)
        out[...] = (np.asarray(image) if pixels is None else pixels).reshape(out.shape)


def _decode_npy(data: bytes, out: np.ndarray) -> None:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"npy version {version}, expected (1, 0)")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    pixels = memoryview(data)[file.tell() :]
    if fortran_order or dtype != np.uint8 or shape != out.shape or len(pixels) != out.size:
        raise ValueError(f"npy of {dtype} {shape}, expected uint8 {out.shape}")
    out[...] = np.frombuffer(pixels, dtype=np.uint8).reshape(shape)


def _check_size(size: tuple[int, int], out: np.ndarray) -> None:
    if size != out.shape[:2]:
        raise ValueError(f"image of {size[0]}x{size[1]} pixels, expected {out.shape[0]}x{out.shape[1]}")
