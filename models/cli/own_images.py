"""The images that a strip starts from: a user's own, made to fit the model, or samples of the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from common.checks import check_whole
from models.cli.image_files import SUFFIXES, is_packed, load_array

if TYPE_CHECKING:
    from models.trained.model import Images, TrainedModel

SAMPLER, NUM_SAMPLING_STEPS = "ddim", 50
"""How images are drawn where the user gives none."""


def choose_images(model: TrainedModel, sources: Sequence[Path], indices: Sequence[int], seed: int) -> Images:
    """Images number `indices` of the sources, one behind the other, or of the model's own samples if there are none.

    sources: image files, folders of them, .npz and .npy files. An image is turned upright, cropped to its centred
    square and resized. Returns (N, H, W, C) uint8. Raises FileNotFoundError or ValueError naming what does not serve.
    """
    if not sources:
        num_steps = min(NUM_SAMPLING_STEPS, model.num_timesteps)
        how = {"seed": seed, "sampler": SAMPLER, "num_sampling_steps": num_steps}
        return np.concatenate([model.sample(1, first_index=index, **how) for index in indices])  # type: ignore[arg-type]
    found = [entry for source in sources for entry in _entries(source)]
    for index in indices:
        check_whole("an index", index, 0, len(found) - 1, f"there are {len(found)} images, counted from 0")
    return np.stack([_fitted(found[index], model.image_shape) for index in indices])


def _entries(source: Path) -> list[Path | np.ndarray]:
    """The files of a folder by name, the images of an array file, or the one file."""
    if is_packed(source):
        raise ValueError(f"{source} is a packed data set: give image files, or a folder of them")
    if source.is_dir():
        files = sorted(file for file in source.rglob("*") if file.suffix.lower() in SUFFIXES[:-1] and file.is_file())
        if not files:
            raise FileNotFoundError(f"{source} holds no images: give a folder of {', '.join(SUFFIXES[:-1])} files")
        return list(files)
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist: give image files, a folder of them, or an .npz or .npy file")
    return list(load_array(source)) if source.suffix.lower() in (".npz", ".npy") else [source]


def _fitted(entry: Path | np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """(H, W, C) uint8. shape: that."""
    height, width, channels = shape
    try:
        image = Image.open(entry) if isinstance(entry, Path) else Image.fromarray(entry.squeeze())
        upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError, TypeError, Image.DecompressionBombError) as error:
        raise ValueError(f"{entry if isinstance(entry, Path) else 'an image'} is not readable: {error}") from error
    return np.asarray(ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)).reshape(shape)
