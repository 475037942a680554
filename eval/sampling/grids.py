"""Sample grids: the same seeds at every checkpoint, so that steps and runs compare at a glance."""

from PIL import Image
from torch import Tensor

from common.pictures import as_image, enlarge, tile

_TARGET_PIXELS = 512


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
