"""Sample grids: the same seeds at every checkpoint, so that steps and runs compare at a glance."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from common.pictures import as_image, enlarge, tile, write_png
from eval.errors import BlockedError
from eval.results import real_grid_path
from eval.runs import open_images

_TARGET_PIXELS, _NUM_REAL = 512, 64


def sample_grid(images: Tensor, columns: int = 8, always: bool = False) -> Image.Image:
    """images: uint8 (N, 1 or 3, H, W), laid out row by row, small ones enlarged by whole pixels (nearest).

    Large images give fewer cells: at most 8 x 8 up to 64 px, 4 x 4 beyond, unless the columns are `always` as given.
    A final row may be short.
    """
    num_images, _, height, width = images.shape
    columns = min(columns if always or max(height, width) <= 64 else 4, num_images)
    rows = -(-min(num_images, columns**2) // columns)
    zoom = max(1, _TARGET_PIXELS // (columns * width))
    shown = images[: rows * columns].permute(0, 2, 3, 1).numpy()
    return as_image(tile(enlarge(shown, zoom), columns, gap=max(2, zoom * width // 12)))


def write_real_grid(run_directory: Path) -> bool:
    """Write images of the run's data set, for reports, unless they are there; False if the data cannot be had now.

    The images lie evenly over the set, the same ones each time.
    """
    path = real_grid_path(run_directory)
    try:
        if path.exists():
            return True
        images = open_images(run_directory)
        places = range(0, len(images), max(1, len(images) // _NUM_REAL))[:_NUM_REAL]
        real = torch.stack([torch.from_numpy(images.read(place)).permute(2, 0, 1) for place in places])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, sample_grid(real), optimize=True)
    except (BlockedError, OSError, ValueError, KeyError, TypeError):
        return False  # a report says what else there is
    return True
