"""Sample grids: the same seeds at every checkpoint, so that steps and runs compare at a glance."""

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from common.files import write_bytes_atomic

_TARGET_PIXELS = 512
_PAPER = 255


def make_grid(images: Tensor, columns: int = 8, always: bool = False) -> Image.Image:
    """images: uint8 (N, 1 or 3, H, W), laid out row by row, small ones enlarged by whole pixels (nearest).

    Large images give fewer cells: at most 8 x 8 up to 64 px, 4 x 4 beyond, unless the columns are `always` as given.
    A final row may be short.
    """
    num_images, channels, height, width = images.shape
    columns = min(columns if always or max(height, width) <= 64 else 4, num_images)
    rows = -(-min(num_images, columns**2) // columns)
    zoom = max(1, _TARGET_PIXELS // (columns * width))
    shown = images[: rows * columns].repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    gap = max(2, zoom * width // 12)
    cell_height, cell_width = height * zoom + gap, width * zoom + gap
    canvas = torch.full((channels, rows * cell_height - gap, columns * cell_width - gap), _PAPER, dtype=torch.uint8)
    for place, image in enumerate(shown):
        top, left = place // columns * cell_height, place % columns * cell_width
        canvas[:, top : top + height * zoom, left : left + width * zoom] = image
    array = canvas.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if channels == 1 else array)


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def write_png(path: Path, image: Image.Image) -> None:
    """Replace `path` whole, so that a report being rendered never reads half a picture."""
    write_bytes_atomic(path, png_bytes(image))
