"""Pictures made of 8-bit images: grids, PNG files and animations that appear whole. NumPy in, so that no torch is
needed."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.files import write_bytes_atomic

PAPER = 255
"""What lies between the images of a grid: white."""
ANIMATIONS = {".gif": "GIF", ".webp": "WEBP"}
"""Suffix of an animation -> Pillow's name of its format."""


def tile(images: np.ndarray, num_columns: int, gap: int, border: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Images (N, H, W, C) uint8 row by row on white, N >= 1: (H', W', C) uint8; the last row may be short.

    gap: pixels between images. border: pixels before the first and after the last of them, both ways.
    """
    num_images, height, width, channels = images.shape
    num_rows = -(-num_images // num_columns)
    before, after = border
    shape = (num_rows * (height + gap) - gap + before + after, num_columns * (width + gap) - gap + before + after)
    grid = np.full((*shape, channels), PAPER, dtype=np.uint8)
    for number, image in enumerate(images):
        top = before + number // num_columns * (height + gap)
        left = before + number % num_columns * (width + gap)
        grid[top : top + height, left : left + width] = image
    return grid


def enlarge(images: np.ndarray, factor: int) -> np.ndarray:
    """Images (N, H, W, C) with each pixel repeated `factor` >= 1 times both ways: (N, H factor, W factor, C)."""
    return images.repeat(factor, axis=1).repeat(factor, axis=2)


def as_image(picture: np.ndarray) -> Image.Image:
    """A picture (H, W, C) uint8: RGB for 3 channels, otherwise its first channel as grey."""
    return Image.fromarray(picture if picture.shape[2] == 3 else picture[..., 0])


def png_bytes(image: Image.Image, **options: Any) -> bytes:
    """A PNG file; options are Pillow's, such as optimize."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return buffer.getvalue()


def write_png(path: Path, image: Image.Image, **options: Any) -> None:
    """Replace `path` whole, so that no reader sees half a picture. Options as for png_bytes. Raises OSError."""
    write_bytes_atomic(path, png_bytes(image, **options))


def write_animation(path: Path, frames: Sequence[Image.Image], frame_milliseconds: int) -> None:
    """Replace `path` whole by an animation that runs without end: WebP without loss, or GIF, by its suffix.

    Frames: at least one, of one size. Equal ones in a row may be kept as one that is shown longer. A GIF has 256
    colours in a frame. Raises OSError.
    """
    buffer = io.BytesIO()
    first, *others = frames
    options: dict[str, Any] = {"lossless": True} if path.suffix.lower() == ".webp" else {}
    first.save(
        buffer,
        format=ANIMATIONS[path.suffix.lower()],
        save_all=True,
        append_images=others,
        duration=frame_milliseconds,
        loop=0,
        **options,
    )
    write_bytes_atomic(path, buffer.getvalue())
