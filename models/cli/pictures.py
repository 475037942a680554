"""What the commands show: a grid or a strip of images, an animation, and the progress bar."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from common.pictures import as_image, enlarge, tile, write_animation, write_png

SMALLEST_CELL_PIXELS = 64
SMALLEST_FRAME_PIXELS = 256
GAP_PIXELS = 2


def write_grid(images: np.ndarray, path: Path) -> None:
    """Write images (N, H, W, C) uint8, N >= 1, as one PNG, as near to a square as can be.

    With 3 channels it is RGB, otherwise the first channel as grey. Small images are enlarged by repeating pixels, so
    that one can see them.
    """
    shown = enlarge(images, max(1, SMALLEST_CELL_PIXELS // images.shape[1]))
    num_columns = math.ceil(math.sqrt(len(images)))
    write_png(path, as_image(tile(shown, num_columns, GAP_PIXELS, border=(GAP_PIXELS, GAP_PIXELS))))


def write_strips(images: np.ndarray, path: Path) -> None:
    """Write images (R, N, H, W, C) uint8 as one PNG of R rows of N, small ones enlarged as in a grid."""
    shown = enlarge(images.reshape(-1, *images.shape[2:]), max(1, SMALLEST_CELL_PIXELS // images.shape[2]))
    write_png(path, as_image(tile(shown, images.shape[1], GAP_PIXELS, border=(GAP_PIXELS, GAP_PIXELS))))


def write_frames(images: np.ndarray, path: Path, frame_milliseconds: int) -> None:
    """Write images (R, N, H, W, C) uint8 as an animation of N frames, each with R images side by side."""
    num_columns = math.ceil(math.sqrt(len(images)))
    factor = max(1, SMALLEST_FRAME_PIXELS // (images.shape[2] * num_columns))
    frames = [as_image(tile(enlarge(column, factor), num_columns, GAP_PIXELS)) for column in images.swapaxes(0, 1)]
    write_animation(path, frames, frame_milliseconds)


@contextmanager
def progress_bar(title: str, num_steps: int) -> Iterator[Callable[[int, int], None]]:
    """Progress on stderr while the block runs; call what it gives once per step, as a Progress."""
    from common.progress import progress

    with progress(title, num_steps) as shown:
        yield lambda done, total: shown.advance()
