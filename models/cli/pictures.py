"""Image files in and out for the commands: grids, folders, arrays; and the progress bar."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

SMALLEST_CELL_PIXELS = 64


def make_grid(images: np.ndarray, num_columns: int | None = None, margin: int = 2) -> np.ndarray:
    """Images (N, H, W, C) uint8 side by side on white, as near to a square as can be: (H', W', C) uint8."""
    num_images, height, width, channels = images.shape
    columns = num_columns or math.ceil(math.sqrt(num_images))
    rows = math.ceil(num_images / columns)
    grid = np.full(
        (rows * (height + margin) + margin, columns * (width + margin) + margin, channels), 255, dtype=np.uint8
    )
    for number, image in enumerate(images):
        top = margin + number // columns * (height + margin)
        left = margin + number % columns * (width + margin)
        grid[top : top + height, left : left + width] = image
    return grid


def write_grid(images: np.ndarray, file: Path, num_columns: int | None = None) -> None:
    """Write images (N, H, W, C) uint8 as one PNG; with 1 channel grey, with 3 RGB, otherwise the first channel.

    Small images are enlarged by repeating pixels, so that one can see them.
    """
    scale = max(1, SMALLEST_CELL_PIXELS // images.shape[1])
    grid = make_grid(images.repeat(scale, axis=1).repeat(scale, axis=2), num_columns)
    Image.fromarray(grid if grid.shape[2] == 3 else grid[..., 0]).save(file)


@contextmanager
def progress_bar(title: str, num_steps: int) -> Iterator[Callable[[int, int], None]]:
    """Progress on stderr while the block runs; call what it gives once per step, as a Progress."""
    from common.progress import progress

    with progress(title, num_steps) as shown:
        yield lambda done, total: shown.advance()
