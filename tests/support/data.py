"""Small images and data sets for the tests of data_pipeline."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.packing.options import PackOptions
from data_pipeline.packing.pack import pack
from data_pipeline.sources.source import ArraySource
from data_pipeline.storage.manifest import Manifest


def photo(size: int, seed: int = 0, height: int | None = None) -> np.ndarray:
    """Something smooth with some grain, like a photograph: (height or size, size, 3) uint8."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 255, (6, 6, 3)).astype(np.uint8))
    smooth = np.asarray(coarse.resize((size, height or size), Image.Resampling.BICUBIC)).astype(int)
    return (smooth + random.integers(-8, 8, smooth.shape)).clip(0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray | Image.Image, image_format: str = "PNG", **settings: object) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, image_format, **settings)
    return buffer.getvalue()


def write_folder(root: Path, number: int, size: int = 24, image_format: str = "PNG") -> Path:
    """A folder of `number` photos in two subfolders."""
    for i in range(number):
        path = root / ("ab"[i % 2]) / f"photo{i:03d}.{image_format.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photo(size, seed=i), image_format))
    return root


def pack_arrays(
    dest: Path, number: int, size: int = 8, samples_per_shard: int = 10, channels: int = 3, encoding: str = "png"
) -> tuple[Manifest, np.ndarray]:
    """A packed set of random images, and the images in the order of their sample indices."""
    shape = (number, size, size, channels)
    images = np.random.default_rng(number).integers(0, 256, shape).astype(np.uint8)
    options = PackOptions(encoding=encoding, samples_per_shard=samples_per_shard)  # type: ignore[arg-type]
    return pack(ArraySource(images), dest, options), images


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
